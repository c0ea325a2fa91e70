"""More steps than all frameworks share (`tests.channel.agents.scripts`): what a model's server may say or do."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from msgspec import Struct, field

from tests.channel.agents.scripts import Call, Step


class Refuse(Struct, frozen=True):
    """The model refuses, in these pieces."""

    pieces: tuple[str, ...]


class Cite(Struct, frozen=True):
    """The model annotates the text that it is saying, in the Responses API's shape."""

    annotation: Mapping[str, Any]


class Calls(Struct, frozen=True):
    """The model makes several calls whose pieces come by turns."""

    calls: tuple[Call, ...]


class Hosted(Struct, frozen=True):
    """The server ran a tool of its own: an output item, in the Responses API only."""

    item: Mapping[str, Any]


class Raw(Struct, frozen=True):
    """The server sends this event, or chunk, as it is."""

    data: Mapping[str, Any]


class Reply(Struct, frozen=True):
    """The server answers with this status and body in place of a stream; a first step."""

    status: int
    body: Mapping[str, Any] | str = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


class Break(Struct, frozen=True):
    """The server sends an error in the stream, and ends it."""

    code: str | int | None
    message: str = "secret detail"


class Truncate(Struct, frozen=True):
    """The stream just ends: in good HTTP, but without what should come last."""


class Cut(Struct, frozen=True):
    """The connection goes in the middle of the stream."""


class Flood(Struct, frozen=True):
    """The model says this many pieces of this many letters, as fast as they are read."""

    pieces: int
    letters: int


ServerStep: TypeAlias = (
    Step | Refuse | Cite | Calls | Hosted | Raw | Reply | Break | Truncate | Cut | Flood
)


def error_body(message: str, code: str | int | None = None, param: str | None = None) -> Any:
    """Return an error as OpenAI's API tells it."""
    return {
        "error": {
            "message": message,
            "type": "invalid_request_error",
            "param": param,
            "code": code,
        }
    }


NO_SUCH_ROUTE = Reply(404, error_body("Invalid URL (POST /v1/responses)"))
