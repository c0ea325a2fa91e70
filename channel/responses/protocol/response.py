"""The Response resource, with every field that Open Responses and OpenAI require of each snapshot."""

from enum import StrEnum
from typing import Any

from msgspec import UNSET, Struct, UnsetType, field

from channel.responses.protocol.items import Item, text_of


class Status(StrEnum):
    """The values of `status` on the wire."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing follows this status."""
        return self not in (Status.QUEUED, Status.IN_PROGRESS)


class InputTokensDetails(Struct, frozen=True, gc=False):
    """Of the input tokens, those read from and written to a prompt cache."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct, frozen=True, gc=False):
    """Of the output tokens, those spent on reasoning."""

    reasoning_tokens: int = 0


class ResponseUsage(Struct, frozen=True, gc=False):
    """Token counts as clients read them; all of them are required on the wire."""

    input_tokens: int = 0
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int = 0


class ResponseFailure(Struct, frozen=True, gc=False):
    """Why a response failed: a code of OpenAI's list and a sentence that is safe to show."""

    code: str
    message: str


class IncompleteDetails(Struct, frozen=True, gc=False):
    """Why a response is incomplete: `max_output_tokens` or `content_filter`."""

    reason: str


class ResponseConversation(Struct, frozen=True, gc=False):
    """The conversation that a response is a turn of."""

    id: str


def _text_default() -> dict[str, Any]:
    return {"format": {"type": "text"}}


class Response(Struct, frozen=True, kw_only=True, gc=False):
    """The resource (Open Responses 2026-04-24 `ResponseResource`; OpenAI `Response`).

    `created_at` and `completed_at` are whole Unix seconds; `completed_at` is set on completed
    responses only; `conversation` is there only where there is one. Numbers that OpenAI lets be null are numbers here, since Open Responses
    requires them.
    """

    id: str
    object: str = "response"
    created_at: int
    status: Status = Status.IN_PROGRESS
    completed_at: int | None = None
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    output: list[Item] = field(default_factory=list)
    model: str
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    max_tool_calls: int | None = None
    max_output_tokens: int | None = None
    text: dict[str, Any] = field(default_factory=_text_default)
    reasoning: dict[str, Any] | None = None
    truncation: str = "disabled"
    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int = 0
    usage: ResponseUsage | None = None
    store: bool = True
    background: bool = False
    service_tier: str = "default"
    metadata: dict[str, str] = field(default_factory=dict)
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    user: str | UnsetType = UNSET
    conversation: ResponseConversation | UnsetType = UNSET

    @property
    def output_text(self) -> str:
        """The text of the message items, joined."""
        return "".join(text_of(item) for item in self.output if item["type"] == "message")
