"""Compaction: a conversation becomes a summary, sealed into a `compaction` item for its own tenant.

Who summarises is the agent: by its `compact(turn)`, a function or a coroutine function that returns
the summary of `turn.items`; or else by being run once more, with a request for a summary as the
last message, of which the text counts. Its tools are not to be called then (`tool_choice: none`).
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from channel.agent import AgentEvent, OutputItem, TextDelta, TurnError, Usage
from channel.contract import (
    ChannelContext,
    ChannelRequest,
    ChannelStreamTransformHook,
    settled,
)
from channel.isolation import IsolationKeys
from channel.ports import Sealer
from channel.responses.protocol.items import Item, message, text_of
from channel.responses.protocol.window import COMPACTION, Compacted, not_ours, packed, unpacked
from channel.responses.stepping import close
from channel.transforms import transformed
from channel.turns import turn_of


REQUEST: Final = """\
Write a summary of this conversation for your own later use. It will stand in place of the messages \
above, which you will not see again. Keep what was asked for and what of that is still open, what was \
decided and why, facts, names, numbers, identifiers and paths exactly as they were given, what tools \
found out that still matters, and what is to be done next. Leave out greetings and repetitions. Answer \
with the summary and nothing else."""
"""What an agent without a `compact` is asked."""

_OPTIONS: Final = frozenset({"prompt_cache_key", "service_tier", "user"})
_REQUEST_ITEM: Final[Mapping[str, Any]] = {
    "id": "msg_summary_request",
    "status": "completed",
    **message("user", REQUEST),
}


class Compactor:
    """Makes compaction items of an agent's conversations, and reads those that it made."""

    def __init__(
        self,
        context: ChannelContext,
        sealer: Sealer,
        transform: ChannelStreamTransformHook | None = None,
    ) -> None:
        """Summarise by the context's target; `transform` sees each event of that before it counts."""
        self._context = context
        self._sealer = sealer
        self._transform = transform

    async def require_own(
        self, keys: IsolationKeys, given: Sequence[Item], param: str = "input"
    ) -> None:
        """Refuse compaction items that were not made for these keys (`RequestError`, 400)."""
        for index, item in enumerate(given):
            if item["type"] == COMPACTION and await self._opened(keys, item) is None:
                raise not_ours(f"{param}[{index}]")

    async def newest(
        self, keys: IsolationKeys, items: Sequence[Item]
    ) -> tuple[int, Compacted] | None:
        """Return where the newest compaction is and what it holds, or None where there is none.

        Items that do not open are passed over: an agent may have compactions of its own making.
        """
        for index in range(len(items) - 1, -1, -1):
            if items[index].get("type") == COMPACTION:
                compacted = await self._opened(keys, items[index])
                if compacted is not None:
                    return index, compacted
        return None

    async def compacted(
        self, seen: ChannelRequest, *, kept: int, covers_kept: bool
    ) -> tuple[Item, list[Usage]]:
        """Return the compaction item of what is seen (all of it), and what it took.

        Raises `TurnError` where the agent says nothing, and whatever the agent raises.
        """
        seen = replace(seen, history=[*seen.history, *seen.input], input=())
        summary, usages = await self._summary(seen)
        if not summary.strip():
            raise TurnError("The agent gave no summary of the conversation.")
        data = packed(Compacted(summary, kept, covers_kept))
        content = await self._sealer.seal(seen.caller.keys, data)
        return {"type": COMPACTION, "encrypted_content": content}, usages

    async def _summary(self, seen: ChannelRequest) -> tuple[str, list[Usage]]:
        compact = getattr(self._context.target, "compact", None)
        events = _told(compact, seen) if callable(compact) else self._asked(seen)
        if self._transform is not None:
            events = transformed(self._transform, events)
        said: list[str] = []
        usages: list[Usage] = []
        try:
            async for event in events:
                match event:
                    case str(text) | TextDelta(text):
                        said.append(text)
                    case OutputItem(item) if item.get("type") == "message":
                        said.append(text_of(item))
                    case Usage():
                        usages.append(event)
        finally:
            await close(events)
        return "".join(said), usages

    def _asked(self, seen: ChannelRequest) -> AsyncIterator[AgentEvent]:
        asked = replace(
            seen,
            input=[dict(_REQUEST_ITEM)],
            tool_choice="none",
            options={name: value for name, value in seen.options.items() if name in _OPTIONS},
            attributes={},
            stream=False,
        )
        return self._context.run_stream(asked)

    async def _opened(self, keys: IsolationKeys, item: Item) -> Compacted | None:
        content = item.get("encrypted_content")
        data = await self._sealer.open(keys, content) if isinstance(content, str) else None
        return None if data is None else unpacked(data)


async def _told(compact: Callable[..., Any], seen: ChannelRequest) -> AsyncIterator[AgentEvent]:
    yield await settled(compact(turn_of(seen)))
