"""A model behind any OpenAI-compatible API as an agent: OpenAI itself, Ollama, vLLM, LM Studio, gateways.

The upstream keeps nothing; what makes a conversation of its answers is the history that comes with
each turn. It is asked by the Responses API where it has one, or else by Chat Completions.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from msgspec.structs import replace
from openai import (
    APIConnectionError,
    APIError,
    APIStatusError,
    AsyncOpenAI,
    AsyncStream,
    Timeout,
)

from channel.agent import Agent, AgentEvent, Turn, TurnError, accepts
from channel.agents.openai_wire import chat, responses
from channel.agents.openai_wire.chat_stream import ChatReader
from channel.agents.openai_wire.dialect import Refusal, first_dialect, simpler
from channel.agents.openai_wire.errors import (
    UpstreamError,
    known_error,
    unavailable,
    upstream_error,
)
from channel.agents.openai_wire.options import UpstreamModel
from channel.agents.openai_wire.responses_stream import ResponsesReader


SILENCE_S: Final = 900.0
"""Seconds that a model may think without a word: no turn on Lambda takes longer."""
CONNECT_S: Final = 10.0
RETRIES: Final = 2
"""Times that a request is repeated which was not answered (429, 5xx, no connection), as the upstream
wishes (`retry-after`, `x-should-retry`). Nobody above repeats a turn whose agent was started."""

_DRAIN_S: Final = 0.2
_NO_KEY: Final = "none"
_WIRES: Final = ("auto", "responses", "chat")
_LOG: Final = logging.getLogger(__name__)

ApiKey = str | Callable[[], Awaitable[str]]
_Events = AsyncStream[object]


def upstream_agent(
    model: str,
    base_url: str,
    *,
    api_key: ApiKey | None,
    wire: str = "auto",
    instructions: str | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> Agent:
    """Return a model of an OpenAI-compatible API as an agent.

    `base_url` is what OpenAI's SDKs take, usually ending in `/v1`. `api_key` is a key, or a function
    that returns one and is called at each request; None for an upstream without keys. `wire` is
    `responses`, `chat`, or `auto`: the Responses API unless the upstream has no such URL. `tools`
    are the upstream's own (`{"type": "web_search"}`), by the Responses API only.

    One client serves all turns; it is made at the first. `aclose()` of the agent closes it.
    """
    if wire not in _WIRES or (tools and wire == "chat"):
        msg = f"wire is {wire!r}; it must be one of {', '.join(_WIRES)}, and with tools not chat"
        raise ValueError(msg)
    upstream = _Upstream(base_url, api_key, wire="responses" if tools else wire)
    return _UpstreamAgent(UpstreamModel(model, instructions, tools), upstream)


@accepts(
    "frequency_penalty",
    "max_output_tokens",
    "max_tool_calls",
    "presence_penalty",
    "prompt_cache_key",
    "reasoning",
    "temperature",
    "text",
    "top_p",
)
class _UpstreamAgent:
    def __init__(self, model: UpstreamModel, upstream: "_Upstream") -> None:
        self._model = model
        self._upstream = upstream

    async def __call__(self, turn: Turn, /) -> AsyncGenerator[AgentEvent, None]:
        try:
            events, is_chat = await self._upstream.ask(turn, self._model)
            reader = ChatReader() if is_chat else ResponsesReader()
            async with events:
                while not reader.is_done:
                    try:
                        event = await anext(events)
                    except StopAsyncIteration:
                        break
                    for said in reader.take(_object(event)):
                        yield said
                await _drain(events)
            for said in reader.end():
                yield said
        except (APIError, UpstreamError) as error:
            if (known := _known(error)) is None:
                raise
            raise known from error

    async def aclose(self) -> None:
        """Close the connections to the upstream."""
        await self._upstream.aclose()


class _Upstream:
    """One upstream: its client, and what is known of what it understands."""

    def __init__(self, base_url: str, api_key: ApiKey | None, *, wire: str) -> None:
        self._base_url = base_url
        self._api_key = api_key
        self._may_switch = wire == "auto"
        self._dialect = first_dialect(base_url, is_chat=wire == "chat")
        self._client: AsyncOpenAI | None = None

    async def ask(self, turn: Turn, model: UpstreamModel) -> tuple[_Events, bool]:
        """Begin a turn; return its events, and whether they are chunks of Chat Completions.

        What the upstream refuses for a reason that is not the request's own is asked again, more
        simply; what it then took is how it is asked from now on. An upstream whose Responses API has
        answered has one: no 404 that it gives later sends anybody to Chat Completions.
        """
        dialect = known = self._dialect
        while True:
            wire = chat if dialect.is_chat else responses
            body = wire.request_of(turn, model, dialect)
            try:
                events = await self._post(wire.ROUTE, body)
            except APIStatusError as error:
                refusal = _refusal(error)
                next_dialect = simpler(dialect, body, refusal, may_switch=self._may_switch)
                if next_dialect is None:
                    raise
                dialect = next_dialect
            else:
                if dialect is not known:
                    self._dialect = replace(dialect, is_forgetful=False)
                if not dialect.is_chat:
                    self._may_switch = False
                return events, dialect.is_chat

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def _post(self, route: str, body: dict[str, Any]) -> _Events:
        if self._client is None:
            self._client = AsyncOpenAI(
                base_url=self._base_url,
                api_key=self._api_key or _NO_KEY,
                timeout=Timeout(SILENCE_S, connect=CONNECT_S),
                max_retries=RETRIES,
            )
        # As plain objects: a model of each event would cost more than all the rest of its way.
        return await self._client.post(
            route, cast_to=object, body=body, stream=True, stream_cls=_Events
        )


def _object(event: object) -> Mapping[str, Any]:
    if not isinstance(event, Mapping):
        raise UpstreamError("an event is no object")
    return event


async def _drain(events: _Events) -> None:
    """Read what is left of a stream that has told its end, so that its connection serves again."""
    with suppress(TimeoutError, APIError):
        async with asyncio.timeout(_DRAIN_S):
            while True:
                try:
                    await anext(events)
                except StopAsyncIteration:
                    return


def _refusal(error: APIStatusError) -> Refusal:
    param = error.param if isinstance(error.param, str) else ""
    return Refusal(error.status_code, error.code or "", param, str(error))


def _known(error: APIError | UpstreamError) -> TurnError | None:
    """Return what a client may know of an error; the log has its status, for whoever runs this."""
    match error:
        case APIConnectionError():
            known: TurnError | None = unavailable()
        case APIError() if type(error) is APIError:  # the stream has told it
            known = known_error(upstream_error(error.body))
        case _:
            known = known_error(error)
    if known is not None:
        facts = {
            "error_type": type(error).__qualname__,
            "status": getattr(error, "status_code", None),
            "code": known.code,
            "upstream_request_id": getattr(error, "request_id", None),
        }
        _LOG.warning("upstream refused or failed", extra=facts)
    return known
