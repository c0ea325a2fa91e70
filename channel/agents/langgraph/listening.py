"""Listening to a run: what its models say, as LangChain's callbacks tell it, in one order."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, LLMResult
from langgraph.constants import TAG_NOSTREAM
from msgspec import Struct

from channel.agent import TurnError
from channel.agents.langgraph.models import Asked
from channel.agents.langgraph.speech import is_cut_off
from channel.agents.reading import unsupported


Path = tuple[str, ...]
"""Where something happens: the names of the nodes, from the graph that is hosted inwards."""


class Heard(Struct, frozen=True):
    """A piece of a model call (`message`), or its end, with the whole message or None if it failed."""

    run_id: UUID
    is_spoken: bool
    """Whether what this call says is part of the answer."""
    message: AIMessage | None
    is_end: bool = False


class Listener(BaseCallbackHandler):
    """Hears all model calls of one turn, those of tools and subgraphs included.

    A call speaks, unless it is made within a tool, is tagged `nostream`, is the agent's own call for
    structured output, or `speaks` says no to its path. `end` is called as soon as a model has called a
    tool that ends the turn. `stop` is called when there is a `refusal`: a speaking call was not given
    what the request asks for (400), or the stream of any model was cut off.
    """

    run_inline = True
    raise_error = True

    def __init__(
        self,
        asked: Asked,
        speaks: Callable[[Path], bool],
        end: Callable[[], object],
        stop: Callable[[], object],
    ) -> None:
        """Listen for the turn that asks this."""
        self.refusal: TurnError | None = None
        self.is_ended_inside = False
        """Whether the tool that ends the turn was called in a subgraph, or within a tool."""
        self._asked = asked
        self._ending = asked.names.ending
        self._speaks = speaks
        self._end = end
        self._stop = stop
        self._heard: deque[Heard] = deque()
        self._spoken: dict[UUID, bool] = {}
        self._inside: set[UUID] = set()
        self._within_tools: set[UUID] = set()

    def take(self) -> Iterator[Heard]:
        """Return what was heard since, oldest first."""
        while self._heard:
            yield self._heard.popleft()

    def on_chain_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002 - the callback's
        inputs: dict[str, Any],  # noqa: ARG002
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **_: Any,
    ) -> None:
        """Note what runs within a tool."""
        self._note(run_id, parent_run_id)

    def on_tool_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002 - the callback's
        input_str: str,  # noqa: ARG002
        *,
        run_id: UUID,
        **_: Any,
    ) -> None:
        """Note what runs within a tool."""
        self._within_tools.add(run_id)

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002 - the callback's
        messages: list[list[BaseMessage]],  # noqa: ARG002
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Decide whether the call speaks; if so, it must have been given what the request asks for."""
        self._note(run_id, parent_run_id)
        options = kwargs.get("options") or {}
        is_own = "ls_structured_output_format" in options or TAG_NOSTREAM in (tags or ())
        path = path_of(metadata or {})
        is_in_tool = run_id in self._within_tools
        if is_in_tool or len(path) > 1:
            self._inside.add(run_id)
        is_spoken = not is_in_tool and not is_own and self._speaks(path)
        self._spoken[run_id] = is_spoken
        if is_spoken:
            self._require_asked(kwargs.get("invocation_params") or {})

    def on_llm_new_token(
        self,
        token: Any,  # noqa: ARG002 - the callback's
        *,
        chunk: Any = None,
        run_id: UUID,
        **_: Any,
    ) -> None:
        """Hear a piece of a message."""
        if isinstance(chunk, ChatGenerationChunk) and isinstance(chunk.message, AIMessage):
            self._hear(run_id, chunk.message)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        """Hear the whole message; what was heard of it in pieces is in it again."""
        generations = response.generations[0] if response.generations else []
        message = getattr(generations[0], "message", None) if generations else None
        if not isinstance(message, AIMessage):
            return
        called = [call["name"] for call in (*message.tool_calls, *message.invalid_tool_calls)]
        if is_cut_off(message):
            self.refusal = self.refusal or TurnError("The model's answer was cut off.")
            self._stop()
        self._asked.has_called |= bool(called)
        if not self._ending.isdisjoint(called):
            self.is_ended_inside |= run_id in self._inside
            self._end()
        self._hear(run_id, message, is_end=True)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:  # noqa: ARG002 - the callback's
        """Hear that a call failed: it has no more to say."""
        self._hear(run_id, None, is_end=True)

    def _note(self, run_id: UUID, parent_run_id: UUID | None) -> None:
        if parent_run_id in self._within_tools:
            self._within_tools.add(run_id)

    def _hear(self, run_id: UUID, message: AIMessage | None, *, is_end: bool = False) -> None:
        self._heard.append(Heard(run_id, self._spoken.get(run_id, False), message, is_end))

    def _require_asked(self, params: Mapping[str, Any]) -> None:
        names = [*tool_names(params.get("tools"))]
        client = self._asked.names.client
        if client & {*names}:
            self._asked.given.add("tools")
        taken = [name for name in self._ending if names.count(name) > 1]
        missing = self._asked.missing()
        if taken:
            what = f"a tool with the name of one of its own, {taken[0]}"
            self.refusal = unsupported(what, "tools" if taken[0] in client else "text.format")
        elif missing is not None:
            self.refusal = unsupported(_WHAT[missing], missing)
        if self.refusal is not None:
            # Raising here would leave other callbacks half called.
            self._stop()


_WHAT: Final = {
    "tools": "tools of the client: its model is not bound to them",
    "tool_choice": "a tool_choice: its model is not bound to it",
    "text.format": "a JSON format: its model is not bound to it",
}


def path_of(metadata: Mapping[str, Any]) -> Path:
    """Return the path of a run by its metadata: subgraphs, then the node; a task counts as a node."""
    namespace = metadata.get("langgraph_checkpoint_ns")
    if not namespace:
        return ()
    names = [segment.partition(":")[0] for segment in namespace.split("|")]
    # A call of a `@task` nests its segment below that of its caller, whose graph it is part of.
    place: Any = metadata.get("langgraph_path") or ()
    depth = 1
    while len(place) == _CALL_LENGTH and place[-1] is True:
        depth += 1
        place = place[1]
    return (*names[:-depth], names[-1])


_CALL_LENGTH: Final = 4
"""A call's path is its kind, its caller's path, its number and True; others are shorter or end otherwise."""


def tool_names(tools: Any) -> Iterator[str]:
    """Return the names of tools in the forms that model providers have for them."""
    if isinstance(tools, Mapping):
        if isinstance(tools.get("name"), str):
            yield tools["name"]
            return
        for key in ("function", "toolSpec", "function_declarations", "functionDeclarations"):
            yield from tool_names(tools.get(key))
    elif isinstance(tools, Sequence) and not isinstance(tools, str):
        for tool in tools:
            yield from tool_names(tool)
