"""Items of a turn as the OpenAI Agents SDK's input, and what a turn leaves open for the next one.

The SDK takes the Responses API's items, so most pass through, without our ids, which no model's
provider knows. A turn that waits for the client keeps what the client never sees of it (`KeptState`):
the agent's own tools and what they said, whose turn it was, the calls that must be approved.
"""

from base64 import b64decode, urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from channel.agent import KeptState, Turn, TurnError
from channel.agents.media import Media, media_of
from channel.agents.openai_agents.models import Traits
from channel.agents.reading import Approvals, parts_of, with_own_tools
from channel.responses.protocol.items import Item


MAX_STATE_BYTES: Final = 256 * 1024
"""How much a turn that waits for the client may keep, as JSON."""

_STATE: Final = "openai_agents"
_PACKED: Final = "sdk."
_DENIED: Final = "This call was not approved."


class Asked(Struct, frozen=True, omit_defaults=True):
    """An approval that the client was asked for; `server` is what it was told of whose tool it is.

    Of a tool that runs here, `call_id` names its call; of a provider's own MCP tool, `request_id` is
    the provider's name of the request.
    """

    name: str
    arguments: str
    server: str
    call_id: str | None = None
    request_id: str | None = None


class Unfinished(Struct, frozen=True, omit_defaults=True):
    """Turns that wait for the client: the agent that goes on, what it did, what it asked for.

    `items` are the SDK's own input items of all that came after the item with the id `after`; None
    means the beginning, and an empty text an item without an id, which is not found again.
    """

    agent: str
    items: list[dict[str, Any]]
    after: str | None = None
    asked: list[Asked] = []


class Conversation(Struct, frozen=True):
    """What a run is given: its input, the agent that goes on, and calls that may now run.

    `open_items` are the last ones of the input, from where the turns that are not finished begin:
    `after` the item with this id.
    """

    items: list[dict[str, Any]]
    open_items: list[dict[str, Any]]
    after: str | None
    agent: str | None = None
    approved: list[dict[str, Any]] = []


_encode: Final = msgspec.json.Encoder().encode


class _Thought(Struct, frozen=True, forbid_unknown_fields=True):
    text: str
    type: Literal["reasoning_text"] = "reasoning_text"


class _Packed(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    content: list[_Thought] | None = None
    provider_data: dict[str, Any] | None = None
    encrypted_content: str | None = None


_decode: Final = msgspec.json.Decoder(_Packed).decode


def kept(unfinished: Unfinished) -> KeptState:
    """Return what the next turn needs to go on; raises `TurnError` where that is too much.

    It is stored with the response, and read with every later turn of the conversation.
    """
    if len(_encode(unfinished)) > MAX_STATE_BYTES:
        msg = "This turn cannot wait for the client: what it would keep is too large."
        raise TurnError(msg)
    return KeptState({_STATE: msgspec.to_builtins(unfinished)})


def conversation_of(turn: Turn, traits: Traits) -> Conversation:
    """Return what the run is given.

    Raises `TurnError` (400, `input`) for media that the model cannot take, and for the answer to an
    approval that was not asked for.
    """
    answers = Approvals(turn)
    unfinished = _unfinished(turn)
    start = None if unfinished is None else _index_after(turn.history, unfinished.after)
    if unfinished is None or start is None:
        answers.require_none_left()
        items = [*_inputs(turn.items, traits)]
        last = (turn.items[-1].get("id") or "") if turn.items else None
        return Conversation(_paired(items), [], last)
    done, approved = _answered(unfinished, answers)
    answers.require_none_left()
    going_on = _paired([*done, *_inputs(turn.input, traits)])
    items = [*_paired([*_inputs(turn.history[:start], traits)]), *going_on]
    agent = unfinished.agent if any(map(_is_answer, turn.input)) else None
    return Conversation(items, going_on, unfinished.after, agent, approved)


def packed_reasoning(item: Mapping[str, Any]) -> str | None:
    """Return what a model wants back with its reasoning, as one text; None where it wants nothing.

    That is OpenAI's encrypted content as it is. Other providers' fields go along with it.
    """
    more = {name: item[name] for name in ("content", "provider_data") if item.get(name)}
    encrypted = item.get("encrypted_content")
    if not more:
        return encrypted or None
    whole = _encode({**more, "encrypted_content": encrypted})
    return _PACKED + urlsafe_b64encode(whole).decode()


def _unfinished(turn: Turn) -> Unfinished | None:
    state = (turn.state or {}).get(_STATE)
    try:
        return None if state is None else msgspec.convert(state, Unfinished)
    except msgspec.ValidationError:  # of another release of this module
        return None


def _index_after(items: Sequence[Item], item_id: str | None) -> int | None:
    if item_id is None:
        return 0
    return next((i + 1 for i, item in enumerate(items) if item.get("id") == item_id), None)


def _answered(
    unfinished: Unfinished, answers: Approvals
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the open items with the answers to what was asked, and the calls that may now run.

    The answers are taken from `answers`. Only what was asked counts, whatever the history shows of it.
    """
    items, approved = unfinished.items, list[dict[str, Any]]()
    for asked in unfinished.asked:
        answer = answers.take(asked.name, asked.arguments, asked.server)
        if answer is None:
            continue
        if asked.request_id is not None:
            items = [*items, _response(asked.request_id, answer)]
        elif answer.get("approve") is True:
            items, taken = _without_call(items, asked.call_id)
            approved += taken
        else:
            reason = answer.get("reason")
            output = f"{_DENIED} {reason}" if isinstance(reason, str) and reason else _DENIED
            denied = {"type": "function_call_output", "call_id": asked.call_id, "output": output}
            items = [*items, denied]
    return items, approved


def _response(request_id: str, answer: Item) -> dict[str, Any]:
    reason = answer.get("reason")
    return {
        "type": "mcp_approval_response",
        "approval_request_id": request_id,
        "approve": answer.get("approve") is True,
        **({"reason": reason} if isinstance(reason, str) else {}),
    }


def _without_call(
    items: Sequence[dict[str, Any]], call_id: str | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the items without the call and the reasoning directly before it, and these two."""
    calls = (i for i, item in enumerate(items) if _question(item) == call_id)
    start = end = next(calls)
    while start > 0 and items[start - 1].get("type") == "reasoning":
        start -= 1
    return [*items[:start], *items[end + 1 :]], [*items[start : end + 1]]


def _paired(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the items without what nobody answered, and the reasoning that led to it."""
    answered = {_answer_to(item) for item in items}
    paired: list[dict[str, Any]] = []
    for item in items:
        asks = _question(item)
        if asks is None or asks in answered:
            paired.append(item)
            continue
        while paired and paired[-1].get("type") == "reasoning":
            paired.pop()
    return paired


def _question(item: Mapping[str, Any]) -> str | None:
    """Return the id by which an answer to the item names it; None of an item that asks nothing."""
    match item.get("type"):
        case "function_call":
            return item.get("call_id")
        case "mcp_approval_request":
            return item.get("id")
        case _:
            return None


def _answer_to(item: Mapping[str, Any]) -> str | None:
    match item.get("type"):
        case "function_call_output":
            return item.get("call_id")
        case "mcp_approval_response":
            return item.get("approval_request_id")
        case _:
            return None


def _is_answer(item: Mapping[str, Any]) -> bool:
    return _answer_to(item) is not None


def _inputs(items: Iterable[Item], traits: Traits) -> Iterator[dict[str, Any]]:
    """Yield the items as input, except for those that the SDK, or the model, does not take."""
    for item in with_own_tools(items):
        match item:
            case {"type": "message", "role": str(role), "content": list(content)} if content:
                _check(parts_of(item), traits)
                if role == "developer" and not traits.is_responses:
                    role = "system"  # which the other APIs know, too
                phase = {"phase": item["phase"]} if item.get("phase") else {}
                yield {"type": "message", "role": role, "content": content, **phase}
            case {"type": "function_call"}:
                yield _only(item, "type", "call_id", "name", "arguments")
            case {"type": "function_call_output"}:
                _check(parts_of(item), traits)
                yield _only(item, "type", "call_id", "output")
            case {"type": "reasoning", "encrypted_content": str(encrypted)} if encrypted:
                summary = item.get("summary") or []
                yield {"type": "reasoning", "summary": summary, **_unpacked(encrypted)}
            case {"type": "image_generation_call", "result": str()} if traits.is_responses:
                yield dict(item)


def _only(item: Item, *names: str) -> dict[str, Any]:
    return {name: item[name] for name in names}


def _unpacked(encrypted: str) -> dict[str, Any]:
    if not encrypted.startswith(_PACKED):
        return {"encrypted_content": encrypted}
    try:
        data = b64decode(encrypted.removeprefix(_PACKED), altchars=b"-_", validate=True)
        # A client brings this: it is what a reasoning item may hold, and nothing else.
        packed = _decode(data)
    except (ValueError, msgspec.DecodeError):
        return {"encrypted_content": encrypted}
    blocks = (packed.provider_data or {}).get("thinking_blocks", [])
    if not isinstance(blocks, list) or not all(map(_is_thinking, blocks)):
        return {"encrypted_content": encrypted}
    unpacked: dict[str, Any] = msgspec.to_builtins(packed)
    return unpacked


def _is_thinking(block: Any) -> bool:
    """Whether it is one of the blocks that the SDK puts into a message just as they are."""
    return isinstance(block, dict) and block.get("type") in ("thinking", "redacted_thinking")


def _check(parts: Iterable[Mapping[str, Any]], traits: Traits) -> None:
    """Raise `TurnError` (400, `input`) for media that the model does not take as they are."""
    for media in filter(None, map(media_of, parts)):
        if media.data is None and not _takes_reference(media, traits):
            media.content()


def _takes_reference(media: Media, traits: Traits) -> bool:
    if traits.fetches:
        return False
    if traits.is_chat:
        return bool(media.url if media.is_image else media.file_id)
    return True
