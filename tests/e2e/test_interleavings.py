"""Random interleavings of what two instances do to the same responses and conversations.

What may come of each step is said by a model that is simple enough to be right: a response has a
state, the responses before it, and perhaps a conversation, which one unfinished turn locks.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from channel.agent import AgentEvent, Turn
from channel.ports import Job
from tests.channel.instances import Instance, Instances
from tests.e2e.stores import in_memory, in_table


@dataclass
class Known:
    """What the model knows of one response."""

    id: str
    asked: str
    history: list[str]
    parents: "list[Known]"
    conversation: "Talk | None"
    state: str = "queued"
    is_deleted: bool = False
    job: Job | None = None
    work: "asyncio.Task[None] | None" = None

    @property
    def is_whole(self) -> bool:
        """Whether all before it is there: what is of a conversation stays there without its response."""
        return all(each.conversation or not each.is_deleted for each in self.parents)

    @property
    def said(self) -> list[str]:
        return [self.asked, f"re {self.asked}"]


@dataclass
class Talk:
    """What the model knows of one conversation."""

    id: str
    items: list[str] = field(default_factory=list)
    holder: Known | None = None


class Agent:
    """Answers when it is let; notes which history it was given."""

    def __init__(self) -> None:
        self.gates: dict[str, asyncio.Event] = {}
        self.begun: dict[str, asyncio.Event] = {}
        self.histories: dict[str, list[str]] = {}

    async def __call__(self, turn: Turn) -> AsyncIterator[AgentEvent]:
        assert turn.response_id not in self.histories, "the agent ran twice"
        self.histories[turn.response_id] = [_text(item) for item in turn.history]
        self.begun.setdefault(turn.response_id, asyncio.Event()).set()
        gate = self.gates.get(turn.response_id)
        if gate is not None:
            await gate.wait()
        yield f"re {turn.text}"


def _text(item: Any) -> str:
    return "".join(part["text"] for part in item["content"])


class World:
    """Two instances, and the model beside them."""

    def __init__(self, stores: dict[str, Any]) -> None:
        self.agent = Agent()
        self.both = Instances(self.agent, **stores)
        self.known: list[Known] = []
        self.talks: list[Talk] = []
        self.count = 0

    def on(self, which: int) -> Instance:
        return (self.both.a, self.both.b)[which % 2]

    async def talk(self, on: Instance, _: int) -> None:
        reply = await on.post("/v1/conversations", {})
        assert reply.status == 200
        self.talks.append(Talk(reply.json["id"]))

    async def ask(self, on: Instance, which: int, *, background: bool) -> None:
        """Create a root, or what continues a response, or a turn of a conversation."""
        self.count += 1
        fields: dict[str, Any] = {"input": f"q{self.count}", "background": background}
        choices: list[Any] = [None, *self.known, *self.talks]
        chosen = choices[which % len(choices)]
        asked = Known("", fields["input"], [], [], None)
        refusal = None
        if isinstance(chosen, Known):
            fields["previous_response_id"] = chosen.id
            asked.parents = [*chosen.parents, chosen]
            if chosen.state != "completed" or chosen.is_deleted or not chosen.is_whole:
                refusal = "previous_response_not_found"
            asked.history = [*chosen.history, *chosen.said]
        if isinstance(chosen, Talk):
            fields["conversation"] = chosen.id
            asked.conversation = chosen
            asked.history = [*chosen.items]
            if chosen.holder is not None:
                refusal = "conversation_locked"
        reply = await on.post("/v1/responses", fields)
        if refusal:
            assert (reply.status, reply.error_body["code"]) == (400, refusal)
            return
        assert reply.status == 200, reply.body
        asked.id = reply.json["id"]
        self.known.append(asked)
        if background:
            asked.job = self.both.jobs.held.pop()
            if asked.conversation:
                asked.conversation.holder = asked
        else:
            self._completed(asked)
            assert self.agent.histories[asked.id] == asked.history

    def _completed(self, asked: Known) -> None:
        asked.state = "completed"
        if asked.conversation:
            asked.conversation.items += asked.said
        self._left(asked)

    def _left(self, asked: Known) -> None:
        if asked.conversation and asked.conversation.holder is asked:
            asked.conversation.holder = None

    def _pick(self, which: int, *states: str) -> Known | None:
        there = [each for each in self.known if not states or each.state in states]
        return there[which % len(there)] if there else None

    async def start(self, on: Instance, which: int) -> None:
        """Let a worker begin, and wait in its middle."""
        asked = self._pick(which, "queued")
        if asked is None or asked.job is None:
            return
        self.agent.gates[asked.id] = asyncio.Event()
        begun = self.agent.begun.setdefault(asked.id, asyncio.Event())
        asked.work = asyncio.create_task(on.work(asked.job))
        waiting = asyncio.create_task(begun.wait())
        await asyncio.wait({asked.work, waiting}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not asked.is_whole:
            asked.state = "failed"  # its history is not whole any more
            await _done(asked.work)
            return
        asked.state = "in_progress"
        assert self.agent.histories[asked.id] == asked.history

    async def finish(self, _: Instance, which: int) -> None:
        asked = self._pick(which, "in_progress")
        if asked is None or asked.work is None:
            return
        self.agent.gates[asked.id].set()
        await _done(asked.work)
        self._completed(asked)

    async def again(self, on: Instance, which: int) -> None:
        """Deliver a job that was delivered before."""
        asked = self._pick(which, "in_progress", "completed", "cancelled", "failed")
        if asked is not None and asked.job is not None:
            await _done(asyncio.create_task(on.work(asked.job)))

    async def cancel(self, on: Instance, which: int) -> None:
        asked = self._pick(which)
        if asked is None:
            return
        reply = await on.cancel(asked.id)
        if asked.is_deleted:
            assert reply.status == 404
        elif asked.state in ("completed", "failed"):
            assert reply.status == 400
        else:
            assert (reply.status, reply.json["status"]) == (200, "cancelled")
            asked.state = "cancelled"
            self._left(asked)
            if asked.work is not None:
                await _done(asked.work)

    async def delete(self, on: Instance, which: int) -> None:
        asked = self._pick(which)
        if asked is None:
            return
        reply = await on.delete(asked.id)
        if asked.is_deleted:
            assert reply.status == 404
        elif asked.state in ("queued", "in_progress"):
            assert reply.status == 400
        else:
            assert reply.status == 200
            asked.is_deleted = True

    async def look(self, on: Instance, which: int) -> None:
        asked = self._pick(which)
        if asked is None:
            return
        reply = await on.get(asked.id)
        if asked.is_deleted:
            assert reply.status == 404
        else:
            assert (reply.status, reply.json["status"]) == (200, asked.state)

    async def read(self, on: Instance, which: int) -> None:
        """Read the items of a conversation."""
        if not self.talks:
            return
        talk = self.talks[which % len(self.talks)]
        listed = await on.list_items(talk.id)
        assert [_text(item) for item in listed] == talk.items[:100]

    async def end(self) -> None:
        for each in self.known:
            assert (each.id in self.agent.histories) == (each.work is not None or not each.job) or (
                each.state == "failed"
            )
            await self.look(self.both.b, self.known.index(each))
            if each.work is not None and not each.work.done():
                self.agent.gates[each.id].set()
                await _done(each.work)


async def _done(task: "asyncio.Task[None]") -> None:
    with anyio.fail_after(10):
        await task


STEPS = {
    "talk": World.talk,
    "ask": lambda world, on, which: world.ask(on, which, background=False),
    "begin": lambda world, on, which: world.ask(on, which, background=True),
    "start": World.start,
    "finish": World.finish,
    "again": World.again,
    "cancel": World.cancel,
    "delete": World.delete,
    "look": World.look,
    "read": World.read,
}
INTERLEAVINGS = st.lists(
    st.tuples(st.sampled_from([*STEPS]), st.integers(0, 1), st.integers(0, 50)),
    min_size=8,
    max_size=40,
)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("channel.responses.background.watching.LOOK_S", 0.001)
    monkeypatch.setattr("channel.responses.background.turns._CANCEL_POLL_S", 0.005)


async def _happen(world: World, steps: list[tuple[str, int, int]]) -> None:
    for name, instance, which in steps:
        await STEPS[name](world, world.on(instance), which)
    await world.end()


# Nothing is made smaller: a step that waits for ever takes ten seconds.
ONCE = settings(
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@settings(ONCE, max_examples=200)
@given(steps=INTERLEAVINGS)
def test_two_instances_in_memory_do_what_the_model_does(steps: list[tuple[str, int, int]]) -> None:
    async def happen() -> None:
        await _happen(World(in_memory()), steps)

    anyio.run(happen)


@settings(ONCE, max_examples=40)
@given(steps=INTERLEAVINGS)
def test_two_instances_over_one_table_do_what_the_model_does(
    dynalite: tuple[str, Any], steps: list[tuple[str, int, int]]
) -> None:
    async def happen() -> None:
        await _happen(World(in_table(dynalite[1])), steps)

    anyio.run(happen)
