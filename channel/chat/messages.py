"""Messages of Chat Completions, and what they are as items of the Responses API."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from channel.responses.protocol import ids
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.items import Item, output_text, text_of
from channel.responses.protocol.shapes import missing


_CallId = Annotated[str, Meta(min_length=1, max_length=256)]


class Text(Struct, frozen=True, gc=False, tag_field="type", tag="text"):
    """A piece of text."""

    text: str


class Refusal(Struct, frozen=True, gc=False, tag_field="type", tag="refusal"):
    """A piece of a refusal."""

    refusal: str


class ImageURL(Struct, frozen=True, gc=False):
    """Where an image is: a `data:` URL, or one that is passed to the agent as it is."""

    url: str
    detail: str | None = None


class Image(Struct, frozen=True, gc=False, tag_field="type", tag="image_url"):
    """An image; some clients give its URL alone."""

    image_url: ImageURL | str


class FileData(Struct, frozen=True, gc=False):
    """What a file is, or is called."""

    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class File(Struct, frozen=True, gc=False, tag_field="type", tag="file"):
    """A file."""

    file: FileData


Part: TypeAlias = Text | Image | File


class Function(Struct, frozen=True, gc=False):
    """A call of a function, with its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(Struct, frozen=True, gc=False):
    """A call that a `tool` message answers."""

    id: _CallId
    function: Function
    type: Literal["function"] = "function"


class System(Struct, frozen=True, gc=False, tag_field="role", tag="system"):
    """An instruction."""

    content: str | list[Text]


class Developer(Struct, frozen=True, gc=False, tag_field="role", tag="developer"):
    """An instruction."""

    content: str | list[Text]


class User(Struct, frozen=True, gc=False, tag_field="role", tag="user"):
    """What the user said."""

    content: str | list[Part]


class Assistant(Struct, frozen=True, gc=False, tag_field="role", tag="assistant"):
    """What the model said and called."""

    content: str | list[Text | Refusal] | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None  # the deprecated way, answered by a `function` message
    audio: Any = None


class Tool(Struct, frozen=True, gc=False, tag_field="role", tag="tool"):
    """The output of a call."""

    tool_call_id: _CallId
    content: str | list[Part]


class FunctionResult(Struct, frozen=True, gc=False, tag_field="role", tag="function"):
    """The output of the last call of that function (deprecated)."""

    name: str
    content: str | None = None


Message: TypeAlias = System | Developer | User | Assistant | Tool | FunctionResult


def split(messages: Sequence[Message]) -> tuple[str | None, list[Item]]:
    """Return the instructions, and the conversation as items in normal form.

    The instructions are the messages of the system or the developer that come first. Raises
    `RequestError` for a tool's output without its call, and for a call without an output.
    """
    begun = len(messages)
    texts: list[str] = []
    for i, message in enumerate(messages):
        if not isinstance(message, System | Developer):
            begun = i
            break
        texts.append(text_of({"content": _parts(message.content)}))
    return "\n\n".join(filter(None, texts)) or None, _Items(messages, begun).made


class _Items:
    """The messages from `begun` on as items, each output paired with its call."""

    def __init__(self, messages: Sequence[Message], begun: int) -> None:
        self.made: list[Item] = []
        self._pending: dict[str, int] = {}  # which message made each call that has no output yet
        self._answered: set[str] = set()
        self._functions: dict[str, str] = {}  # the call ids that are ours, by the function's name
        for i in range(begun, len(messages)):
            self._add(messages[i], i)
        for call_id, i in self._pending.items():
            msg = f"No 'tool' message answers the tool call '{call_id}'."
            raise RequestError(msg, param=f"messages[{i}].tool_calls", code="invalid_value")
        if len(self.made) >= ids.MAX_ITEMS // 2:
            raise RequestError("Too many messages.", param="messages", code="invalid_value")

    def _add(self, message: Message, i: int) -> None:
        where = f"messages[{i}]"
        match message:
            case System(content):
                self._say("system", _parts(content))
            case Developer(content):
                self._say("developer", _parts(content))
            case User(content):
                self._say("user", _parts(content, f"{where}.content"))
            case Assistant():
                self._answer(message, i, where)
            case Tool(call_id, content):
                output = (
                    content if isinstance(content, str) else _parts(content, f"{where}.content")
                )
                self._conclude(call_id, output, f"{where}.tool_call_id")
            case FunctionResult(name, content):
                call_id = self._functions.pop(name, "")
                self._conclude(call_id, content or "", f"{where}.name")

    def _say(self, role: str, parts: list[dict[str, Any]]) -> None:
        self.made.append({"type": "message", "role": role, "content": parts})

    def _answer(self, message: Assistant, i: int, where: str) -> None:
        if message.audio is not None:
            msg = f"Unsupported parameter: '{where}.audio' is not supported by this server."
            raise RequestError(msg, param=f"{where}.audio", code="unsupported_parameter")
        calls = [*(message.tool_calls or ())]
        if message.function_call is not None:
            call = ToolCall(f"function_call_{i}", message.function_call)
            self._functions[call.function.name] = call.id
            calls.append(call)
        if parts := _answer_parts(message):
            self._say("assistant", parts)
        elif message.content is None and not calls:
            raise missing(f"{where}.content")
        for call in calls:
            self._pending[call.id] = i
            function = {"name": call.function.name, "arguments": call.function.arguments}
            self.made.append({"type": "function_call", "call_id": call.id, **function})

    def _conclude(self, call_id: str, output: str | list[dict[str, Any]], param: str) -> None:
        if call_id not in self._pending and call_id not in self._answered:
            msg = f"Invalid value for '{param}': no message before it made this call."
            raise RequestError(msg, param=param, code="invalid_value")
        self._pending.pop(call_id, None)
        self._answered.add(call_id)
        self.made.append({"type": "function_call_output", "call_id": call_id, "output": output})


def _answer_parts(message: Assistant) -> list[dict[str, Any]]:
    """Return what the assistant said, without empty texts: not every model takes them back."""
    content = message.content or ()
    said: list[Text | Refusal] = [Text(content)] if isinstance(content, str) else [*content]
    if message.refusal:
        said.append(Refusal(message.refusal))
    return [
        output_text(part.text)
        if isinstance(part, Text)
        else {"type": "refusal", "refusal": part.refusal}
        for part in said
        if not isinstance(part, Text) or part.text
    ]


def _parts(content: str | Sequence[Part], where: str = "") -> list[dict[str, Any]]:
    given = [Text(content)] if isinstance(content, str) else content
    return [_part(part, f"{where}[{j}]") for j, part in enumerate(given)]


def _part(part: Part, where: str) -> dict[str, Any]:
    match part:
        case Text(text):
            return {"type": "input_text", "text": text}
        case Image(image):
            given = ImageURL(image) if isinstance(image, str) else image
            detail = given.detail or "auto"
            return {"type": "input_image", "image_url": given.url, "detail": detail}
        case File(file):
            known = {k: v for k, v in msgspec.structs.asdict(file).items() if v is not None}
            if not known.keys() & {"file_data", "file_id"}:
                raise missing(f"{where}.file.file_data")
            return {"type": "input_file", **known}
