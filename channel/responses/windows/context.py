"""What an agent is given of a conversation: after compactions, and within its `max_input_tokens`.

Decided when a turn runs, by whichever process runs it. An agent may have the attributes
`count_input_tokens` (`channel.responses.windows.tokens`), `compact` (`channel.responses.windows.compaction`) and
`max_input_tokens`, a number: an input that is longer is refused, or loses its oldest items with
`truncation: auto`. Without that attribute, `truncation` is the agent's own business.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from channel.agent import AgentEvent, OutputItem, TurnError, Usage
from channel.contract import ChannelContext, ChannelRequest
from channel.isolation import IsolationKeys
from channel.responses.protocol.items import Item
from channel.responses.protocol.window import (
    COMPACTION,
    Window,
    kept_messages,
    unanswered_from,
    windowed,
    without_oldest,
)
from channel.responses.stepping import close
from channel.responses.windows.compaction import Compactor
from channel.responses.windows.tokens import input_tokens, item_tokens
from channel.turns import turn_of


CREATE: Final = "message.create"
COMPACT: Final = "message.compact"
COUNT: Final = "message.count"
"""Operations of a `ChannelRequest`."""
CONTEXT_MANAGEMENT: Final = "context_management"
"""The attribute of a `ChannelRequest` that holds the field of that name."""

_DEFAULT_SHARE: Final = 0.9

StartAgent = Callable[[], AsyncIterator[AgentEvent]]


class ContextWindows:
    """Runs the target of one channel on what it is to see of each request."""

    def __init__(self, context: ChannelContext, compactor: Compactor) -> None:
        """Take the compactor of the same context."""
        self._context = context
        self._compactor = compactor

    def start(self, asked: ChannelRequest, *, truncation: str = "disabled") -> StartAgent:
        """Return what starts the run of a request; a compaction's own run for `COMPACT`."""
        if asked.operation == COMPACT:
            return partial(self._compact, asked)
        if self._concerns(asked):
            return partial(self._run, asked, truncation)
        return partial(self._context.run_stream, asked)

    async def require_own(
        self, keys: IsolationKeys, given: Sequence[Item], param: str = "input"
    ) -> None:
        """Refuse compaction items that were not made for these keys (`RequestError`, 400)."""
        await self._compactor.require_own(keys, given, param)

    async def seen(self, asked: ChannelRequest) -> ChannelRequest:
        """Return the request with what the agent sees: a summary in place of what was compacted."""
        items = [*asked.history, *asked.input]
        newest = await self._compactor.newest(asked.caller.keys, items)
        if newest is None:
            return asked
        window = windowed(asked.history, asked.input, *newest)
        return replace(asked, history=window.history, input=window.input)

    async def count(self, seen: ChannelRequest) -> int:
        """Return the input tokens of what is seen; raises what the agent's own counter raises."""
        return await input_tokens(self._context.target, turn_of(seen))

    async def kept(self, asked: ChannelRequest) -> list[Item]:
        """Return the messages that a compacted window of the request keeps word for word."""
        seen = await self.seen(asked)
        return kept_messages([*seen.history, *seen.input], item_tokens)

    @property
    def limit(self) -> int | None:
        """The agent's `max_input_tokens`, where it has that."""
        limit = getattr(self._context.target, "max_input_tokens", None)
        return limit if type(limit) is int else None

    def _concerns(self, asked: ChannelRequest) -> bool:
        if self.limit is not None or asked.attributes.get(CONTEXT_MANAGEMENT):
            return True
        for items in (asked.input, asked.history):
            for item in items:
                if item["type"] == COMPACTION:
                    return True
        return False

    async def _compact(self, asked: ChannelRequest) -> AsyncIterator[AgentEvent]:
        seen, kept = await self.seen(asked), await self.kept(asked)
        item, usages = await self._compactor.compacted(seen, kept=len(kept), covers_kept=True)
        yield OutputItem(item)
        for usage in usages:
            yield usage

    async def _run(self, asked: ChannelRequest, truncation: str) -> AsyncIterator[AgentEvent]:
        seen = await self.seen(asked)
        made = await self._managed(asked, seen)
        if made is not None:
            item, usages = made
            yield OutputItem(item)
            for usage in usages:
                yield usage
            seen = await self.seen(replace(asked, input=[*asked.input, item]))
        if self.limit is not None:
            seen = await self._fitted(seen, self.limit, truncation)
        events = self._context.run_stream(seen)
        try:
            async for event in events:
                yield event
        finally:
            await close(events)

    async def _managed(
        self, asked: ChannelRequest, seen: ChannelRequest
    ) -> tuple[Item, list[Usage]] | None:
        """Return a new compaction where `context_management` asks for one, and what it took."""
        threshold = self._threshold(asked.attributes.get(CONTEXT_MANAGEMENT) or ())
        if threshold is None or await self.count(seen) <= threshold:
            return None
        items = [*asked.history, *asked.input]
        newest = await self._compactor.newest(asked.caller.keys, items)
        start = unanswered_from(items)
        if start <= (0 if newest is None else newest[0] + 1):
            return None  # the agent has said nothing that a summary could make shorter
        covered = await self.seen(replace(asked, history=items[:start], input=()))
        kept = len(items) - start
        return await self._compactor.compacted(covered, kept=kept, covers_kept=False)

    def _threshold(self, entries: Sequence[dict[str, Any]]) -> int | None:
        """Return the lowest threshold of `context_management`; without a number, 90 % of the limit."""
        default = None if self.limit is None else int(self.limit * _DEFAULT_SHARE)
        given = [entry.get("compact_threshold") or default for entry in entries]
        return min((threshold for threshold in given if threshold is not None), default=None)

    async def _fitted(self, seen: ChannelRequest, limit: int, truncation: str) -> ChannelRequest:
        """Return the request cut to the limit: it loses as few of its oldest items as it takes.

        Raises `TurnError` (400 `context_length_exceeded`) where it may lose none, or is too long
        without all of them.
        """
        tokens = await self.count(seen)
        if tokens <= limit:
            return seen
        whole = Window([*seen.history], [*seen.input])
        too_few, enough = 0, len(whole.history)
        if truncation != "auto" or await self._count_without(seen, whole, enough) > limit:
            raise _too_long(tokens, limit, has_history=bool(whole.history))
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if await self._count_without(seen, whole, middle) > limit:
                too_few = middle
            else:
                enough = middle
        return replace(seen, history=without_oldest(whole, enough).history)

    async def _count_without(self, seen: ChannelRequest, whole: Window, count: int) -> int:
        return await self.count(replace(seen, history=without_oldest(whole, count).history))


def _too_long(tokens: int, limit: int, *, has_history: bool) -> TurnError:
    # Only history can be compacted, or cut.
    advice = ", compact it, or set 'truncation' to 'auto'." if has_history else "."
    return TurnError(
        f"The input has {tokens} tokens, but this agent takes {limit} at most. Shorten it{advice}",
        code="context_length_exceeded",
        status=400,
        param="input",
    )
