"""Tests of an agent in three lines: by the real host and channel, without a server.

from channel.testing import ask

first = ask("agent.assistant:agent", "My name is Ada.")
assert "Ada" in first.ask("What is my name?").text
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextvars import copy_context
from typing import Any, Final, TypeAlias, TypeVar
from weakref import finalize

import msgspec
from msgspec import Struct
from starlette.types import ASGIApp, Message

from channel.agent import Agent, AgentEvent, ToolFinished, ToolStarted, Turn
from channel.auth import FixedKeys, Principal
from channel.host import AgentHost
from channel.loading import agent_of
from channel.memory import InMemoryResponseStore
from channel.responses.channel import ResponsesChannel


Input: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A message of the user, or input items in the Responses API's shapes."""

_KEY: Final = "testing"
_KEYS: Final = FixedKeys({_KEY: Principal("tester")})
_DAY_S: Final = 24 * 3600.0
_FIRST_ERROR: Final = 400
_Value = TypeVar("_Value")


def ask(agent: Any, message: Input, /, **fields: Any) -> "Reply":
    """Give an agent one turn and return what came of it.

    `agent` is what `AGENT=` may name (a function over a turn, a framework's agent, a factory of
    either), or the reference itself, such as `"agent.assistant:agent"`; of a model alone
    (`bedrock:…`, `openai:…`) it is the agent that `converse_agent` or `upstream_agent` makes.
    `fields` are those of `POST /v1/responses`: `instructions`, `tools`, `temperature`, `text`, …
    Nothing is stubbed: an agent calls the model that it was made with.

    An agent that fails before a client could see anything of it is an HTTP error, and so is a request
    that is refused: `NoResponseError`, whose cause is what the agent raised. One that fails later
    has begun its answer: a reply whose `status` is `failed`.

    All of a thread's asks share one event loop, which runs while they do: a model's client may keep
    its connections from one to the next. In a coroutine, write `await ask_async(…)`.
    Raises `AgentReferenceError` or `TypeError` for what is no agent.
    """
    return _run(lambda: ask_async(agent, message, **fields))


async def ask_async(agent: Any, message: Input, /, **fields: Any) -> "Reply":
    """Do what `ask` does, in the loop that is running."""
    return await _Session(agent_of(agent)).turn(message, fields)


class NoResponseError(Exception):
    """The API answered with an HTTP error in place of a response.

    `status` is the HTTP status; `code`, `message` and `param` are the error's, as clients read them.
    """

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        """Take the status and the body's `error`."""
        self.status = status
        self.code: str | None = error.get("code")
        self.message: str = error.get("message") or ""
        self.param: str | None = error.get("param")
        where = f" (param: {self.param})" if self.param else ""
        super().__init__(" ".join(filter(None, [str(status), self.code, self.message])) + where)


class Call(Struct, frozen=True):
    """A call of a tool that the request declared; `arguments` as text where they are no JSON."""

    name: str
    arguments: Any
    call_id: str


class ToolRun(Struct, frozen=True):
    """A tool that the agent ran itself; clients see it only where the host shows tools."""

    name: str
    arguments: Any
    output: str | None = None
    error: str | None = None


class Reply(Struct, frozen=True, eq=False):
    """What came of a turn, and the turns after it.

    `response` is the whole response and `events` are all stream events, both as clients read them;
    `tools` are the agent's own tools in the order in which it began them. `exception` is what the
    agent raised, which no client sees.
    """

    response: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]
    tools: Sequence[ToolRun]
    exception: Exception | None
    _session: "_Session"
    _fields: Mapping[str, Any]

    def __repr__(self) -> str:
        """Show what a failed assertion is about."""
        shown: dict[str, Any] = {"status": self.status, "text": self.text, "calls": self.calls}
        if self.error:
            shown |= {"error": self.error, "exception": self.exception}
        return f"Reply({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def id(self) -> str:
        """The id of the response."""
        return str(self.response["id"])

    @property
    def status(self) -> str:
        """`completed`, `incomplete`, `failed` or `cancelled`."""
        return str(self.response["status"])

    @property
    def text(self) -> str:
        """The answer: the text of all messages of the output."""
        parts = [part for item in self.output for part in item.get("content") or ()]
        return "".join(part["text"] for part in parts if part["type"] == "output_text")

    @property
    def deltas(self) -> list[str]:
        """The pieces in which the answer was streamed."""
        of_text = "response.output_text.delta"
        return [event["delta"] for event in self.events if event["type"] == of_text]

    @property
    def output(self) -> Sequence[Mapping[str, Any]]:
        """The output items."""
        items: Sequence[Mapping[str, Any]] = self.response["output"]
        return items

    @property
    def calls(self) -> list[Call]:
        """The calls of the request's tools, which `give` answers."""
        return [
            Call(item["name"], _decoded(item["arguments"]), item["call_id"])
            for item in self.output
            if item["type"] == "function_call"
        ]

    @property
    def usage(self) -> Mapping[str, Any] | None:
        """The token counts, such as `reply.usage["total_tokens"]`."""
        usage: Mapping[str, Any] | None = self.response["usage"]
        return usage

    @property
    def error(self) -> Mapping[str, Any] | None:
        """The `code` and `message` of a failed response."""
        error: Mapping[str, Any] | None = self.response["error"]
        return error

    def ask(self, message: Input, /, **fields: Any) -> "Reply":
        """Go on from this reply, which the agent remembers; several times is several branches.

        It repeats the fields of this turn (`tools`, `instructions`, …) except those that are given.
        """
        return _run(lambda: self.ask_async(message, **fields))

    async def ask_async(self, message: Input, /, **fields: Any) -> "Reply":
        """Do what `ask` does, in the loop that is running."""
        changed = {**self._fields, **fields, "previous_response_id": self.id}
        return await self._session.turn(message, changed)

    def give(self, *outputs: Any, **fields: Any) -> "Reply":
        """Go on with the outputs of `calls`, in their order: text, or what becomes JSON.

        Raises `ValueError` where there are more or fewer of them than calls.
        """
        return _run(lambda: self.give_async(*outputs, **fields))

    async def give_async(self, *outputs: Any, **fields: Any) -> "Reply":
        """Do what `give` does, in the loop that is running."""
        calls = self.calls
        if len(outputs) != len(calls):
            names = ", ".join(call.name for call in calls) or "none"
            msg = f"give() got {len(outputs)} outputs, but the calls are {len(calls)}: {names}"
            raise ValueError(msg)
        items = [
            {"type": "function_call_output", "call_id": call.call_id, "output": _as_text(output)}
            for call, output in zip(calls, outputs, strict=True)
        ]
        return await self.ask_async(items, **fields)


class _Session:
    """An agent and its history; each turn goes through an app of its own, to be watched alone."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._store = InMemoryResponseStore()

    async def turn(self, message: Input, fields: Mapping[str, Any]) -> Reply:
        watched = _Watched(self._agent)
        channel = ResponsesChannel(store=self._store, keepalive_s=0, first_event_grace_s=_DAY_S)
        app = AgentHost(watched, channels=[channel], authenticator=_KEYS).app
        async with app.router.lifespan_context(app):
            status, body = await _post(app, {**fields, "input": message, "stream": True})
        if status >= _FIRST_ERROR:
            raise NoResponseError(status, msgspec.json.decode(body)["error"]) from watched.exception
        events = _events(body)
        response = next(event["response"] for event in reversed(events) if "response" in event)
        return Reply(
            response, events, [*watched.tools.values()], watched.exception, self, dict(fields)
        )


class _Watched:
    """An agent, and what no client sees of its turn: its own tools, and what it raised."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.tools: dict[str, ToolRun] = {}
        self.exception: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "aclose":  # the next turn needs what it holds
            raise AttributeError(name)
        return getattr(self._agent, name)

    def __call__(self, turn: Turn) -> AsyncIterator[AgentEvent]:
        try:
            events = self._agent(turn)
        except Exception as error:
            self.exception = error
            raise
        return self._watch(events) if hasattr(events, "__anext__") else events

    async def _watch(self, events: AsyncIterator[AgentEvent]) -> AsyncIterator[AgentEvent]:
        try:
            async for event in events:
                self._note(event)
                yield event
        except Exception as error:
            self.exception = error
            raise
        finally:
            if (close := getattr(events, "aclose", None)) is not None:
                await close()

    def _note(self, event: AgentEvent) -> None:
        match event:
            case ToolStarted(call_id=call_id):
                self.tools[call_id] = ToolRun(event.name, _decoded(event.arguments))
            case ToolFinished(call_id=call_id) if call_id in self.tools:
                self.tools[call_id] = msgspec.structs.replace(
                    self.tools[call_id], output=event.output, error=event.error
                )
            case _:
                pass


class _Runner(threading.local):
    """The loop of a thread's asks, until the thread ends."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        finalize(threading.current_thread(), self._runner.close)

    def run(self, work: Coroutine[Any, Any, _Value]) -> _Value:
        return self._runner.run(work, context=copy_context())


_RUNNER: Final = _Runner()


def _run(work: Callable[[], Coroutine[Any, Any, _Value]]) -> _Value:
    if _is_in_a_loop():
        msg = "an event loop is running here: write `await …ask_async(…)` or `await …give_async(…)`"
        raise RuntimeError(msg)
    return _RUNNER.run(work())


def _is_in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _post(app: ASGIApp, fields: Mapping[str, Any]) -> tuple[int, bytes]:
    """Post a create request at the ASGI interface; return the status and the body of the reply."""
    body = msgspec.json.encode(fields)
    requests: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        if not requests:
            await asyncio.Event().wait()  # this client never goes away
        return requests.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/responses",
        "raw_path": b"/v1/responses",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {_KEY}".encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def _events(body: bytes) -> list[dict[str, Any]]:
    """Return the events of an SSE body, whose data are one line each; `[DONE]` is none."""
    data = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
    return [msgspec.json.decode(each) for each in data]


def _decoded(arguments: str) -> Any:
    try:
        return msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return arguments


def _as_text(output: Any) -> Any:
    return output if isinstance(output, str) else msgspec.json.encode(output).decode()
