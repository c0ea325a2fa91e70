"""From what an Agent Framework run streams to agent events: one object a run, no I/O."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from agent_framework import AgentResponseUpdate, Content
from msgspec.structs import replace

from channel.agent import (
    AgentEvent,
    Annotation,
    OutputItem,
    ReasoningDelta,
    RefusalDelta,
    ToolFinished,
    ToolStarted,
    Usage,
)
from channel.agents.agent_framework.calls import Calls, arguments_of, extension
from channel.agents.agent_framework.messages import (
    OUTPUT_KIND,
    RAW_REASONING,
    REFUSAL,
    Thought,
    wanted_back,
)
from channel.agents.provider_errors import turn_error_of
from channel.responses.protocol.items import Item, output_text


_COUNTS: Final = (
    "input_token_count",
    "output_token_count",
    "cache_read_input_token_count",
    "cache_creation_input_token_count",
    "reasoning_output_token_count",
)
_TOO_MANY: Final = 429
_MODELS_OWN: Final = frozenset({"text", "text_reasoning", "function_call"})
"""What begins another model turn where it follows the results of tools."""


class ReportedError(Exception):
    """The run reported an error as a content, and nothing after it: the agent's failure."""

    code = ""
    status_code: int | None = None


class Telling:
    """What is told of one run.

    Text that replaces what was said yields what it adds. Where it takes something back, what was said
    stays (a client has read it) and the new text follows as a message of its own.
    """

    def __init__(self, clients: Collection[str], safe: Collection[str]) -> None:
        """Take the names of the client's functions, and of the tools that run without asking first."""
        self._calls = Calls(clients, safe)
        self._message_id: str | None = None
        self._message: list[str] = []  # the text said in this message
        self._run: list[str] = []  # what of it was said without anything between
        self._is_refusing = False
        self._thought: Thought | None = None
        self._thoughts: list[str] = []  # the reasoning shown in this message
        self._held: list[Thought] = []  # reasoning before a call of the agent's own
        self._requests: list[Content] = []
        self._has_results = False
        self._usage = (0,) * len(_COUNTS)
        self._tools: dict[str, str] = {}  # the service's own tools, by call id, to their ends
        self._seen: set[str] = set()
        self._error: Content | None = None
        self.finish_reason: str | None = None

    @property
    def has_failed(self) -> bool:
        """Whether the run has reported an error, and said nothing since."""
        return self._error is not None

    def resume(self, contents: Collection[Content]) -> None:
        """Know the calls of an earlier turn, whose results may come in this one."""
        self._calls.resume(contents)

    def take(self, update: AgentResponseUpdate) -> Iterator[AgentEvent]:
        """Take an update; raises `CallError`."""
        if update.message_id and update.message_id != self._message_id:
            self._message_id = update.message_id
            self._message, self._run, self._thoughts = [], [], []
        contents: Iterable[Content] = update.contents
        replaces = update.merge_mode == "replace"
        if replaces:
            contents = _joined(contents)
            self._run = [*self._message]
        for content in contents:
            if update.role in (None, "assistant") or content.type == "function_result":
                yield from self._take(content, replaces=replaces)
        if update.finish_reason is not None:
            self.finish_reason = str(update.finish_reason)
            if self.finish_reason == "tool_calls":
                yield from self._calls.begin_tools()

    def end(self) -> Iterator[AgentEvent]:
        """Finish what is open; raises `TurnError` or `ReportedError` where the run reported an error."""
        yield from self._end_thought()
        yield from self._calls.settle()
        for call_id, output in self._tools.items():
            yield ToolFinished(call_id, output)
        if self._error is not None:
            raise _failure(self._error)

    def paused(self) -> list[Content]:
        """Return what waits for a client besides its own functions: calls, and requests to approve them.

        With it goes all that belongs to the same answer of the model; empty where nothing waits.
        """
        calls = self._calls.unanswered
        kinds = {call.is_client for call in calls}
        if not self._requests and kinds != {True, False}:
            return []
        thoughts = [thought.content() for thought in self._held]
        return [*thoughts, *(call.whole() for call in calls), *self._requests]

    def _take(self, content: Content, *, replaces: bool) -> Iterator[AgentEvent]:
        if content.type in _MODELS_OWN and self._has_results:
            self._begin_model_turn()
        replaces = replaces or content.merge_mode == "replace"
        match content.type:
            case "text":
                yield from self._text(content, replaces=replaces)
            case "text_reasoning":
                yield from self._reasoning(content, replaces=replaces)
            case "function_call":
                yield from self._end_thought(gives_back=self._calls.is_of_client(content))
                self._run = []
                yield from self._calls.take(content, replaces=replaces)
            case "function_result":
                self._has_results = True
                yield from self._end_thought(gives_back=False)
                yield from self._calls.result(content)
            case "usage":
                yield from self._used(content)
            case "error":
                self._error = content
            case _:
                yield from self._end_thought()
                yield from self._calls.settle()
                self._run = []
                yield from self._other(content)

    def _begin_model_turn(self) -> None:
        self._has_results = False
        self._calls.forget()
        self._held, self._requests = [], []
        self._message, self._run, self._thoughts = [], [], []

    def _text(self, content: Content, *, replaces: bool) -> Iterator[AgentEvent]:
        is_refusal = content.additional_properties.get(OUTPUT_KIND) == REFUSAL
        if is_refusal != self._is_refusing:
            self._is_refusing, self._run = is_refusal, []
        text = content.text or ""
        said = extension("".join(self._run), text) if replaces else text
        if said != "":
            self._error = None
            yield from self._end_thought()
            yield from self._calls.settle()
        if said is None:
            yield from self._said_anew(text)
        elif said:
            self._run.append(said)
            self._message.append(said)
            yield RefusalDelta(said) if is_refusal else said
        for annotation in content.annotations or ():
            if (told := _annotation(annotation)) is not None and self._is_new(told):
                yield Annotation(told)

    def _said_anew(self, text: str) -> Iterator[AgentEvent]:
        self._run, self._message = [text], [text]
        if text:
            part = {"type": "refusal", "refusal": text} if self._is_refusing else output_text(text)
            yield OutputItem({"type": "message", "role": "assistant", "content": [part]})

    def _reasoning(self, content: Content, *, replaces: bool) -> Iterator[AgentEvent]:
        thought, text = self._thought, content.text or ""
        if replaces:
            # What was thought is shown already; what replaces it is shown as far as it adds to it.
            text = (
                extension("".join(self._thoughts) if thought is None else thought.text, text) or ""
            )
            if thought is None and not text:
                return
        if thought is None or _is_another(thought, content):
            yield from self._end_thought()
            yield from self._calls.settle()
            thought = Thought(is_raw=bool(content.additional_properties.get(RAW_REASONING)))
        if text:
            self._thoughts.append(text)
            yield ReasoningDelta(text, new_part=not thought.text)
        self._run = []
        self._thought = replace(
            thought,
            id=thought.id or content.id,
            text=thought.text + text,
            data=content.protected_data or thought.data,
        )

    def _end_thought(self, *, gives_back: bool = True) -> Iterator[AgentEvent]:
        """End the reasoning. Before a call that history will not hold, nothing of it may come back."""
        thought, self._thought = self._thought, None
        if thought is None:
            return
        if not gives_back:
            self._held.append(thought)
        elif (back := wanted_back(thought)) is not None:
            yield ReasoningDelta(encrypted_content=back)

    def _used(self, content: Content) -> Iterator[AgentEvent]:
        details: Mapping[str, Any] = content.usage_details or {}
        counts = tuple(int(details.get(name) or 0) for name in _COUNTS)
        # What replaces is a sum already: of this call so far, or of all calls of the run.
        was = self._usage
        if content.merge_mode != "replace":
            counts = tuple(map(sum, zip(was, counts, strict=True)))
        self._usage = counts
        yield Usage(*(now - before for now, before in zip(counts, was, strict=True)))

    def _other(self, content: Content) -> Iterator[AgentEvent]:
        match content.type:
            case "function_approval_request":
                self._error = None
                self._requests.append(content)
                yield OutputItem(_approval_request(content))
            case "oauth_consent_request":
                link = {"consent_link": content.consent_link, "server_label": content.server_name}
                yield OutputItem({"type": "oauth_consent_request", **link})
            case "data" | "uri" | "image_generation_tool_result":
                yield from self._media(content)
            case "hosted_file" if content.file_id:
                yield Annotation({"type": "file_path", "file_id": content.file_id, "index": 0})
            case _ if content.type.endswith("_tool_call"):
                yield from self._tool_started(content)
            case _ if content.type.endswith("_tool_result"):
                yield from self._tool_finished(content)

    def _media(self, content: Content) -> Iterator[AgentEvent]:
        """Tell of images, and of what can be found at a URL; a Responses item for other data there is not."""
        for each in _contents(content.outputs) if content.outputs else [content]:
            uri = each.uri or ""
            is_partial = each.additional_properties.get("is_partial_image")
            if is_partial or not uri or not self._is_new({"uri": uri}):
                continue
            is_image = (each.media_type or "").startswith("image")
            if uri.startswith("data:") and is_image:
                image = {"type": "image_generation_call", "status": "completed"}
                yield OutputItem({**image, "result": uri.partition(",")[2]})
            elif not uri.startswith("data:"):
                yield Annotation(_link(uri, each.name or "", None))

    def _tool_started(self, content: Content) -> Iterator[AgentEvent]:
        call_id, kind = _tool_id(content), content.type.removesuffix("_tool_call")
        if kind == "computer":
            msg = "the agent asked for a computer, which nobody here has"
            raise ReportedError(msg)
        if self._is_new({"call_id": call_id}):
            self._tools[call_id] = ""
            label, name = content.server_name or "agent", content.tool_name or kind
            yield ToolStarted(call_id, name, arguments_of(content) or "{}", label)

    def _tool_finished(self, content: Content) -> Iterator[AgentEvent]:
        call_id = _tool_id(content)
        given = content.output if content.output is not None else content.outputs
        text = given if isinstance(given, str) else _texts(_contents(given))
        if call_id in self._tools and (text or content.type == "mcp_server_tool_result"):
            del self._tools[call_id]
            yield ToolFinished(call_id, text)

    def _is_new(self, what: Mapping[str, Any]) -> bool:
        key = json.dumps(what, sort_keys=True)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True


def _is_another(thought: Thought, content: Content) -> bool:
    """Return whether the content begins another block of reasoning, as the framework tells them apart."""
    if content.id and thought.id:
        return content.id != thought.id
    return bool(thought.data and content.text and not content.id)


def _joined(contents: Iterable[Content]) -> Iterator[Content]:
    """Return the contents of a whole message with its text as one, after the reasoning."""
    texts = [content for content in contents if content.type == "text"]
    others = [content for content in contents if content.type != "text"]
    yield from (content for content in others if content.type == "text_reasoning")
    if texts:
        yield Content.from_text(
            "".join(content.text or "" for content in texts),
            annotations=[each for content in texts for each in content.annotations or ()],
            additional_properties=texts[0].additional_properties,
        )
    yield from (content for content in others if content.type != "text_reasoning")


def _approval_request(content: Content) -> Item:
    call = content.function_call
    return {
        "type": "mcp_approval_request",
        "id": content.id,
        "name": (call and call.name) or "",
        "arguments": (call and arguments_of(call)) or "{}",
        "server_label": (call and call.server_name) or "agent",
    }


def _annotation(given: Mapping[str, Any]) -> dict[str, Any] | None:
    if url := given.get("url"):
        return _link(url, given.get("title") or "", given.get("annotated_regions"))
    if file_id := given.get("file_id"):
        filename = given.get("title") or file_id
        return {"type": "file_citation", "file_id": file_id, "filename": filename, "index": 0}
    return None


def _link(url: str, title: str, regions: Any) -> dict[str, Any]:
    region: Mapping[str, Any] = next(iter(regions or ()), {})
    place = {name: int(region.get(name) or 0) for name in ("start_index", "end_index")}
    return {"type": "url_citation", "url": url, "title": title, **place}


def _tool_id(content: Content) -> str:
    return content.call_id or content.image_id or content.id or content.type.rpartition("_")[0]


def _contents(given: Any) -> list[Content]:
    listed = given if isinstance(given, list) else [given]
    return [each for each in listed if isinstance(each, Content)]


def _texts(contents: Iterable[Content]) -> str:
    return "\n".join(each.text or each.stdout or "" for each in contents)


def _failure(content: Content) -> Exception:
    """Return what the reported error is, in the words for the errors that clients raise."""
    error = ReportedError("the run ended with an error content")
    error.code = content.error_code or ""
    error.status_code = _TOO_MANY if error.code == "rate_limit_exceeded" else None
    return turn_error_of(error) or error
