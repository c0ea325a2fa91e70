"""The state of one connection: who may run when, what is refused, and what is remembered."""

import json
from collections import defaultdict
from math import inf
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from channel.responses.sockets.connection import (
    Called,
    Claim,
    ConnectionState,
    Ending,
    Latest,
    farewell,
)
from channel.responses.sockets.endpoint import Limits
from channel.responses.sockets.frames import Frame, Refusal


LIMITS = Limits()
DONE = Ending(has_failed=False)
FAILED = Ending(has_failed=True)


def opened(limits: Limits = LIMITS) -> ConnectionState:
    return ConnectionState.opened(0.0, limits)


def frame(lane: str = "", size: int = 2, previous: str | None = None) -> Frame:
    return Frame(b"x" * size, lane, previous_response_id=previous)


def code(message: bytes | None) -> str | None:
    return None if message is None else json.loads(message)["error"]["code"]


def names(called: list[Called]) -> list[str]:
    return [each.name for each in called]


def send(state: ConnectionState, *frames: tuple[str, str], limits: Limits = LIMITS) -> None:
    """Let frames arrive: the name of each, and its lane."""
    for name, lane in frames:
        assert state.arrive(frame(lane), name, 1.0, limits).is_taken


# Lanes


def test_frames_of_a_lane_are_served_one_after_the_other() -> None:
    state = opened()
    send(state, ("1", ""), ("2", ""), ("3", ""))

    assert names(state.call(1.0, inf, LIMITS)) == ["1"]
    assert state.call(1.0, inf, LIMITS) == []
    assert state.settle(Called("", "1"), DONE) == []
    assert names(state.call(1.0, inf, LIMITS)) == ["2"]
    state.settle(Called("", "2"), FAILED)
    assert names(state.call(1.0, inf, LIMITS)) == ["3"]
    assert not state.is_idle
    state.settle(Called("", "3"), DONE)
    assert state.is_idle


def test_lanes_are_served_at_the_same_time_oldest_first() -> None:
    state = opened()
    send(state, ("1", "b"), ("2", "b"), ("3", "a"), ("4", ""))

    assert names(state.call(1.0, inf, LIMITS)) == ["1", "3", "4"]


def test_a_frame_that_was_called_and_not_begun_is_called_again_and_keeps_its_place() -> None:
    limits, state = Limits(in_flight=2), opened()
    send(state, ("1", "a"), ("2", "a"), ("3", "b"), ("4", "c"), limits=limits)

    assert names(state.call(1.0, 6.0, limits)) == ["1", "3"]
    assert state.claim(Called("a", "1"), "me", 2.0, 47.0) is Claim.GRANTED
    assert state.call(5.0, 10.0, limits) == []
    assert names(state.call(6.0, 11.0, limits)) == ["3"]
    assert state.claim(Called("b", "3"), "late", 7.0, 52.0) is Claim.GRANTED
    assert state.claim(Called("b", "3"), "again", 8.0, 53.0) is Claim.REFUSED
    state.settle(Called("a", "1"), DONE)
    assert names(state.call(11.0, 16.0, limits)) == ["2"]


def test_sixteen_are_in_flight_and_the_next_waits_for_one_of_them() -> None:
    state = opened()
    send(state, *[(str(i), f"lane{i}") for i in range(18)])

    assert len(state.call(1.0, inf, LIMITS)) == 16
    assert state.call(1.0, inf, LIMITS) == []
    state.settle(Called("lane5", "5"), DONE)
    assert names(state.call(1.0, inf, LIMITS)) == ["16"]


def test_the_default_lane_does_not_count_among_thirty_two() -> None:
    limits = Limits(waiting=100)
    state = opened(limits)
    send(state, *[(str(i), f"lane{i}") for i in range(32)], ("d", ""), limits=limits)

    refused = state.arrive(frame("lane32"), "x", 1.0, limits)
    again = state.arrive(frame("lane31"), "y", 1.0, limits)

    assert code(refused.told) == "websocket_stream_limit_reached"
    assert refused.told is not None
    assert json.loads(refused.told)["stream_id"] == "lane32"
    assert json.loads(refused.told)["error"]["param"] == "stream_id"
    assert again.is_taken


def test_what_was_settled_before_is_not_settled_again() -> None:
    state = opened()
    send(state, ("1", ""), ("2", ""))
    state.call(1.0, inf, LIMITS)
    state.settle(Called("", "1"), DONE)

    assert state.settle(Called("", "1"), DONE) == []
    assert state.settle(Called("none", "1"), DONE) == []
    assert names(state.call(1.0, inf, LIMITS)) == ["2"]


def test_a_frame_that_arrives_twice_by_one_name_is_there_once() -> None:
    state = opened()
    send(state, ("1", ""), ("1", ""))

    state.call(1.0, inf, LIMITS)
    state.settle(Called("", "1"), DONE)

    assert state.is_idle


# Refusals


def test_a_refusal_is_told_at_once_where_its_lane_is_idle() -> None:
    assert opened().arrive(Refusal(b"{}", "a"), "1", 1.0, LIMITS).told == b"{}"


def test_a_refusal_waits_for_the_turns_before_it_and_is_told_before_those_after_it() -> None:
    state = opened()
    send(state, ("1", ""), ("a", "a"))
    assert state.arrive(Refusal(b"one"), "2", 1.0, LIMITS).told is None
    assert state.arrive(Refusal(b"two"), "3", 1.0, LIMITS).told is None
    send(state, ("4", ""))
    state.call(1.0, inf, LIMITS)

    assert state.settle(Called("a", "a"), DONE) == []
    assert state.settle(Called("", "1"), DONE) == [b"one", b"two"]
    assert state.call(1.0, inf, LIMITS) == [], "they are being told"
    assert state.settle(Called("", "1"), DONE) == []
    assert names(state.call(1.0, inf, LIMITS)) == ["4"]


def test_refusals_that_wait_are_bounded() -> None:
    state = opened(Limits(burst=100))
    send(state, ("1", ""))
    limits = Limits(burst=100, refusals=2)

    told = [state.arrive(Refusal(b"no"), f"r{i}", 1.0, limits).told for i in range(4)]

    assert told == [None, None, b"no", b"no"]


def test_frames_that_come_too_fast_are_refused_and_nothing_else_is_disturbed() -> None:
    limits = Limits(burst=2, frames_per_s=1)
    state = opened(limits)
    send(state, ("1", ""), ("2", ""), limits=limits)

    idle = state.arrive(frame("a"), "3", 1.0, limits)
    busy = state.arrive(frame(), "4", 1.0, limits)
    malformed = state.arrive(Refusal(b"no", "b"), "5", 1.0, limits)
    later = state.arrive(frame("a"), "6", 2.0, limits)

    assert code(idle.told) == code(malformed.told) == "rate_limit_exceeded"
    assert idle.told is not None
    assert (json.loads(idle.told)["status"], json.loads(idle.told)["stream_id"]) == (429, "a")
    assert (busy.told, busy.is_taken) == (None, False)
    assert later.is_taken
    assert names(state.call(2.0, inf, limits)) == ["1", "6"]
    assert [code(each) for each in state.settle(Called("", "1"), DONE)] == []
    assert names(state.call(2.0, inf, limits)) == ["2"]
    assert [code(each) for each in state.settle(Called("", "2"), DONE)] == ["rate_limit_exceeded"]


@pytest.mark.parametrize("limits", [Limits(waiting=2), Limits(waiting_bytes=4)])
def test_frames_that_wait_are_bounded(limits: Limits) -> None:
    state = opened(limits)
    send(state, ("1", ""), limits=limits)
    state.call(1.0, inf, limits)
    send(state, ("2", ""), ("3", ""), limits=limits)

    refused = state.arrive(frame("a"), "4", 1.0, limits)

    assert code(refused.told) == "rate_limit_exceeded"


# The end of a connection


def test_a_connection_ends_after_an_hour_when_what_is_in_flight_has_ended() -> None:
    state = opened()
    send(state, ("1", ""), ("2", ""), ("3", "a"), ("4", "a"))
    state.call(3599.0, inf, LIMITS)

    assert state.arrive(frame(), "5", 3599.9, LIMITS).is_taken
    assert not state.is_over(3599.9, LIMITS)
    refused = state.arrive(frame("b"), "6", 3600.0, LIMITS)
    assert code(refused.told) == "websocket_connection_limit_reached"
    assert state.call(3600.0, inf, LIMITS) == []
    state.settle(Called("", "1"), DONE)
    assert state.call(3600.0, inf, LIMITS) == []
    assert not state.is_idle
    told = state.arrive(frame("a"), "7", 3600.0, LIMITS)
    assert (told.is_taken, told.told) == (False, None)
    state.call(3600.0, inf, LIMITS)
    assert [code(each) for each in state.settle(Called("a", "3"), DONE)] == [
        "websocket_connection_limit_reached"
    ]
    state.settle(Called("a", "3"), DONE)
    assert state.is_idle
    assert code(farewell(LIMITS)) == "websocket_connection_limit_reached"
    assert json.loads(farewell(LIMITS))["status"] == 400
    assert "60 minutes" in json.loads(farewell(LIMITS))["error"]["message"]


# What a connection remembers


def remembering(*lanes: str) -> ConnectionState:
    """Return a state whose lanes have a latest response each, named like the lane, in flight."""
    state = opened()
    for lane in lanes:
        send(state, (f"name-{lane}", lane))
        state.remember(lane, Latest(f"resp_{lane}", f"place-{lane}"))
    state.call(1.0, inf, LIMITS)
    return state


def ended(state: ConnectionState, lane: str, **ending: Any) -> dict[str, str]:
    """End what is in flight in a lane; return what the connection remembers then."""
    state.settle(Called(lane, f"name-{lane}"), Ending(**ending))
    return {each.response_id: each.place for each in state.latest}


def test_the_latest_response_of_each_lane_is_known() -> None:
    state = remembering("a", "b")

    assert (state.place_of("resp_a"), state.place_of("resp_b")) == ("place-a", "place-b")
    assert state.place_of("resp_c") is None
    state.remember("a", Latest("resp_c", "place-c"))
    assert state.place_of("resp_a") is None


def test_a_continuation_that_failed_evicts_what_it_continued() -> None:
    known = ended(remembering("a", "b"), "a", has_failed=True, previous_response_id="resp_a")

    assert known == {"resp_b": "place-b"}


def test_a_fork_that_failed_keeps_the_parent_of_the_other_lane() -> None:
    known = ended(remembering("a", "b"), "b", has_failed=True, previous_response_id="resp_a")

    assert known == {"resp_a": "place-a", "resp_b": "place-b"}


def test_a_new_turn_that_failed_evicts_nothing() -> None:
    assert "resp_a" in ended(remembering("a"), "a", has_failed=True)


def test_a_stored_response_takes_the_place_of_a_local_one() -> None:
    assert ended(remembering("a"), "a", has_failed=False, is_local=False) == {}
    assert "resp_a" in ended(remembering("a"), "a", has_failed=False, is_local=True)


def test_frames_that_are_refused_evict_nothing() -> None:
    state = remembering("a")
    state.arrive(Refusal(b"{}", "a"), "x", 1.0, LIMITS)

    assert "resp_a" in ended(state, "a", has_failed=False, is_local=True)


# Frames that run elsewhere


def test_one_owner_runs_a_frame_and_keeps_it_by_renewing_it() -> None:
    state = opened()
    send(state, ("1", ""))
    (called,) = state.call(1.0, 60.0, LIMITS)

    assert state.claim(called, "me", 2.0, 30.0) is Claim.GRANTED
    assert state.claim(called, "me", 2.0, 30.0) is Claim.GRANTED, "a write that is repeated"
    assert state.claim(called, "you", 2.0, 30.0) is Claim.REFUSED
    assert state.renew(called, "me", 45.0)
    assert not state.renew(called, "you", 45.0)
    assert state.claim(called, "you", 44.0, 80.0) is Claim.REFUSED
    assert state.call(44.0, 100.0, LIMITS) == []


def test_a_frame_whose_owner_is_gone_is_called_again_and_told_as_crashed() -> None:
    state = opened()
    send(state, ("1", ""))
    (called,) = state.call(1.0, 60.0, LIMITS)
    state.claim(called, "me", 2.0, 30.0)

    assert state.call(31.0, 90.0, LIMITS) == [called]
    assert state.claim(called, "you", 32.0, 77.0) is Claim.CRASHED
    assert state.claim(called, "you", 32.0, 77.0) is Claim.CRASHED, "a write that is repeated"
    assert not state.renew(called, "me", 130.0)
    assert state.claim(called, "they", 33.0, 78.0) is Claim.REFUSED


def test_a_job_that_is_tried_again_tells_the_crash_of_the_one_before() -> None:
    state = opened()
    send(state, ("1", ""))
    (called,) = state.call(1.0, 60.0, LIMITS)
    state.claim(called, "me", 2.0, 30.0)

    assert state.claim(called, "again", 31.0, 60.0) is Claim.CRASHED


def test_a_job_that_comes_late_is_granted_and_one_of_a_frame_that_is_over_is_not() -> None:
    state = opened()
    send(state, ("1", ""))
    (called,) = state.call(1.0, 60.0, LIMITS)

    assert state.claim(called, "me", 500.0, 545.0) is Claim.GRANTED
    state.settle(called, DONE)
    assert state.claim(called, "me", 500.0, 545.0) is Claim.REFUSED
    assert not state.renew(called, "me", 600.0)


# Any order of things


LANES = ("", "a", "b", "c")
SMALL = Limits(named_lanes=2, in_flight=2, waiting=3, refusals=2, burst=10**6)


class Interleavings(RuleBasedStateMachine):
    """Frames and refusals of some lanes, in any order, against a queue for each lane."""

    def __init__(self) -> None:
        super().__init__()
        self.state = ConnectionState.opened(0.0, SMALL)
        self.model: dict[str, list[str]] = defaultdict(list)  # what is not over, in order
        self.flying: dict[str, str] = {}
        self.number = 0

    @rule(lane=st.sampled_from(LANES))
    def send_frame(self, lane: str) -> None:
        name = self._name()
        arrived = self.state.arrive(frame(lane), name, 1.0, SMALL)
        waiting = [each for queue in self.model.values() for each in queue if each[0] == "f"]
        waiting = [each for each in waiting if each not in self.flying.values()]
        is_known = lane == "" or lane in self.model
        named = len(self.model.keys() - {""})
        assert arrived.is_taken == (
            len(waiting) < SMALL.waiting and (is_known or named < SMALL.named_lanes)
        )
        if arrived.is_taken:
            self.model[lane].append(name)
        else:
            self._refuse(lane, "r" + name[1:], arrived.told)

    @rule(lane=st.sampled_from(LANES))
    def send_nonsense(self, lane: str) -> None:
        name = "r" + self._name()[1:]
        told = self.state.arrive(Refusal(name.encode(), lane), name, 1.0, SMALL).told
        self._refuse(lane, name, told)

    @rule()
    def call(self) -> None:
        room = SMALL.in_flight - len(self.flying)
        heads = [
            (queue[0], lane)
            for lane, queue in self.model.items()
            if queue and lane not in self.flying
        ]
        expected = [Called(lane, name) for name, lane in sorted(heads, key=_age)[:room]]
        assert self.state.call(1.0, inf, SMALL) == expected
        self.flying |= {each.lane: each.name for each in expected}

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from(sorted(self.flying)))
        called = Called(lane, self.flying[lane])
        refusals = []
        while len(self.model[lane]) > 1 and self.model[lane][1][0] == "r":
            refusals.append(self.model[lane].pop(1))
        told = self.state.settle(called, DONE)
        assert len(told) == len(refusals)
        if told:
            assert self.state.settle(called, DONE) == []
        del self.model[lane][0]
        del self.flying[lane]

    @invariant()
    def holds(self) -> None:
        assert len(self.flying) <= SMALL.in_flight
        assert self.state.is_idle == (not any(self.model.values()))
        kept = {lane: [e.name for e in each.entries] for lane, each in self.state.lanes.items()}
        assert {k: len(v) for k, v in kept.items()} == {k: len(v) for k, v in self.model.items()}
        assert all(not lane.entries or not lane.entries[0].refusal for lane in _lanes(self.state))

    @invariant()
    def is_a_value(self) -> None:
        if not self.flying:  # until infinity, which JSON does not know
            data = msgspec.json.encode(self.state)
            assert msgspec.json.decode(data, type=ConnectionState) == self.state

    def _name(self) -> str:
        self.number += 1
        return f"f{self.number}"

    def _refuse(self, lane: str, name: str, told: bytes | None) -> None:
        queue = self.model.get(lane, [])
        waiting = [each for other in self.model.values() for each in other if each[0] == "r"]
        has_room = len(waiting) < SMALL.refusals
        assert (told is None) == (bool(queue) and has_room)
        if told is None:
            queue.append(name)


def _age(head: tuple[str, str]) -> int:
    return int(head[0][1:])


def _lanes(state: ConnectionState) -> list[Any]:
    return [*state.lanes.values()]


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


@given(st.lists(st.floats(0.0, 0.5), max_size=60))
def test_no_more_frames_pass_than_a_second_allows(pauses: list[float]) -> None:
    limits = Limits(burst=4, frames_per_s=2, waiting=1000)
    state = opened(limits)
    now, taken = 0.0, []
    for number, pause in enumerate(pauses):
        now += pause
        if state.arrive(frame(), str(number), now, limits).is_taken:
            taken.append(now)

    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= 4 + 2 * (taken[last] - taken[first]) + 1e-6
