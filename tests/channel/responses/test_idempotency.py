"""`Idempotency-Key`: who is first, who is told to wait, who is refused, and what is replayed."""

import asyncio
import logging
import time
from hashlib import sha256
from typing import Any

import msgspec
import pytest

from channel.isolation import IsolationKeys
from channel.memory_idempotency import InMemoryIdempotencyStore
from channel.ports import StoreError
from channel.responses.idempotency import (
    LONGEST_S,
    MARGIN_S,
    RESULT_S,
    Claim,
    Claimed,
    Entry,
    Find,
    Idempotency,
    IdempotencyStore,
    Replay,
    Verdict,
    judged,
)
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.response import Response, ResponseConversation, Status


pytestmark = pytest.mark.anyio

ANN = IsolationKeys("ann")
BODY = b'{"input":"Hi"}'
RESPONSE = Response(id="resp_1", created_at=1, model="agent", status=Status.COMPLETED)


class Clock:
    """Stands still until a test moves it."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Broken:
    """A store on memory whose named methods fail, after they have done what they do."""

    def __init__(
        self, *broken: str, error: BaseException | None = None, clock: Clock | None = None
    ) -> None:
        self.broken = {*broken}
        self._error = error or StoreError("gone")
        self._kept = InMemoryIdempotencyStore(clock=clock or time.time)

    async def claim(self, keys: IsolationKeys, key: str, entry: Entry, /) -> Claim:
        claim = await self._kept.claim(keys, key, entry)
        self._fail("claim")
        return claim

    async def note(self, keys: IsolationKeys, key: str, entry: Entry, /) -> None:
        await self._kept.note(keys, key, entry)
        self._fail("note")

    async def finish(
        self, keys: IsolationKeys, key: str, token: str, response_id: str, until: float, /
    ) -> None:
        self._fail("finish")
        await self._kept.finish(keys, key, token, response_id, until)

    async def release(self, keys: IsolationKeys, key: str, token: str, /) -> None:
        await self._kept.release(keys, key, token)
        self._fail("release")

    def _fail(self, method: str) -> None:
        if method in self.broken:
            raise self._error


async def never(response_id: str) -> bool:
    """Be the lookup where there is nothing to look for."""
    raise AssertionError(response_id)


def found(*stored: str) -> Find:
    async def find(response_id: str) -> bool:
        return response_id in stored

    return find


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def idempotency(clock: Clock) -> Idempotency:
    return Idempotency(InMemoryIdempotencyStore(clock=clock), clock=clock)


async def claimed(
    idempotency: Idempotency, key: str | None = "key", body: bytes = BODY, **limits: Any
) -> Claimed:
    begun = await idempotency.begin(ANN, key, body, **{"find": never, **limits})
    assert isinstance(begun, Claimed)
    return begun


async def refused(idempotency: Idempotency, key: str = "key", body: bytes = BODY) -> RequestError:
    with pytest.raises(RequestError) as raised:
        await idempotency.begin(ANN, key, body, find=never)
    return raised.value


async def test_the_result_of_the_first_request_is_replayed_for_a_day(
    idempotency: Idempotency, clock: Clock
) -> None:
    async with await claimed(idempotency) as begun:
        await begun.conclude(RESPONSE, is_kept=True)

    for waited_s in (0, RESULT_S):
        clock.now += waited_s
        assert await idempotency.begin(ANN, "key", BODY, find=never) == Replay("resp_1")
    clock.now += 1
    await claimed(idempotency)


async def test_while_the_first_request_is_served_its_like_is_told_to_come_again(
    idempotency: Idempotency,
) -> None:
    async with await claimed(idempotency):
        error = await refused(idempotency)

    assert (error.status, error.param, error.code) == (409, None, "idempotency_key_in_progress")
    assert error.headers == {"retry-after": "1"}


@pytest.mark.parametrize("is_finished", [False, True])
async def test_a_key_that_comes_with_another_body_is_refused(
    idempotency: Idempotency, is_finished: bool
) -> None:
    begun = await claimed(idempotency)
    if is_finished:
        await begun.conclude(RESPONSE, is_kept=True)

    error = await refused(idempotency, body=BODY + b" ")

    assert (error.status, error.param, error.code) == (422, None, "idempotency_key_reused")
    assert error.headers == {}


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "key\n", "a\tb", "\x7f", "schlüssel", "🔑"])
async def test_what_is_no_key_is_refused_by_the_name_of_the_header(
    idempotency: Idempotency, key: str
) -> None:
    error = await refused(idempotency, key)

    assert (error.status, error.param, error.code) == (400, None, "invalid_idempotency_key")
    assert "'Idempotency-Key'" in error.message


@pytest.mark.parametrize("key", ["0", " ", "~" * 255, '"8e03978e-40d5-43dd-bc93-6894a57f9324"'])
async def test_any_printable_text_of_ascii_is_a_key(idempotency: Idempotency, key: str) -> None:
    await (await claimed(idempotency, key)).conclude(RESPONSE, is_kept=True)

    assert await idempotency.begin(ANN, key, BODY, find=never) == Replay("resp_1")


async def test_a_request_without_a_key_is_nobodys_like_and_asks_no_store() -> None:
    idempotency = Idempotency(Broken("claim", "finish", "release"))

    for _ in range(2):
        async with await claimed(idempotency, None) as begun:
            await begun.conclude(RESPONSE, is_kept=True)
    await claimed(idempotency, None)


async def test_a_request_that_came_to_nothing_lets_its_key_be_used_again(
    idempotency: Idempotency,
) -> None:
    with pytest.raises(LookupError):
        async with await claimed(idempotency):
            raise LookupError

    await claimed(idempotency, body=b"another")


async def test_a_request_that_is_cancelled_lets_its_key_be_used_again(
    idempotency: Idempotency,
) -> None:
    has_begun = asyncio.Event()

    async def serve() -> None:
        async with await claimed(idempotency):
            has_begun.set()
            await asyncio.Event().wait()

    serving = asyncio.create_task(serve())
    await has_begun.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving

    await claimed(idempotency)


@pytest.mark.parametrize(("store", "is_kept"), [(True, False), (False, True), (False, False)])
async def test_what_is_not_kept_is_not_replayed_and_the_key_guards_only_while_it_runs(
    idempotency: Idempotency, store: bool, is_kept: bool
) -> None:
    response = msgspec.structs.replace(RESPONSE, store=store)

    async with await claimed(idempotency) as begun:
        assert (await refused(idempotency)).status == 409
        await begun.conclude(response, is_kept=is_kept)
        await claimed(idempotency, body=b"another")

    assert (await refused(idempotency, body=b"another")).status == 409


@pytest.mark.parametrize("status", list(Status))
async def test_whatever_was_stored_is_the_result(idempotency: Idempotency, status: Status) -> None:
    response = msgspec.structs.replace(RESPONSE, status=status)
    await (await claimed(idempotency)).conclude(response, is_kept=True)

    assert await idempotency.begin(ANN, "key", BODY, find=never) == Replay("resp_1")


async def test_a_key_is_concluded_once(idempotency: Idempotency) -> None:
    begun = await claimed(idempotency)
    await begun.conclude(RESPONSE, is_kept=True)

    await begun.release()
    await begun.conclude(msgspec.structs.replace(RESPONSE, id="resp_2"), is_kept=True)

    assert await idempotency.begin(ANN, "key", BODY, find=never) == Replay("resp_1")


@pytest.mark.parametrize(("limits", "lasting_s"), [({}, LONGEST_S), ({"limit_s": 30.0}, 30.0)])
async def test_a_crashed_request_holds_its_key_as_long_as_it_could_have_run(
    idempotency: Idempotency, clock: Clock, limits: dict[str, Any], lasting_s: float
) -> None:
    crashed = await claimed(idempotency, **limits)
    clock.now += lasting_s + MARGIN_S
    assert (await refused(idempotency)).status == 409

    clock.now += 1
    second = await claimed(idempotency)

    await crashed.conclude(msgspec.structs.replace(RESPONSE, id="resp_late"), is_kept=True)
    assert (await refused(idempotency)).status == 409
    await second.conclude(RESPONSE, is_kept=True)
    assert await idempotency.begin(ANN, "key", BODY, find=never) == Replay("resp_1")


LEASE_S = LONGEST_S + MARGIN_S
NOTED = "resp_1"


async def lost(idempotency: Idempotency) -> Claimed:
    """Return the claim of a request that will crash, with its response noted."""
    begun = await claimed(idempotency)
    await begun.note(NOTED)
    return begun


async def test_a_noted_claim_counts_as_long_as_any_and_is_not_looked_up_before(
    idempotency: Idempotency, clock: Clock
) -> None:
    await lost(idempotency)
    clock.now += LEASE_S

    assert (await refused(idempotency)).status == 409


async def test_a_response_that_a_crashed_request_has_stored_is_its_result_for_a_day(
    idempotency: Idempotency, clock: Clock
) -> None:
    await lost(idempotency)
    clock.now += LEASE_S + 1

    assert await idempotency.begin(ANN, "key", BODY, find=found(NOTED)) == Replay(NOTED)

    clock.now += RESULT_S  # the row is finished: nothing is looked up any more
    assert await idempotency.begin(ANN, "key", BODY, find=never) == Replay(NOTED)
    assert (await refused(idempotency, body=b"another")).status == 422


async def test_a_crashed_request_that_has_stored_nothing_is_served_anew(
    idempotency: Idempotency, clock: Clock
) -> None:
    crashed = await lost(idempotency)
    clock.now += LEASE_S + 1

    second = await claimed(idempotency, find=found())

    assert (await refused(idempotency)).status == 409
    await crashed.note("resp_late")
    await crashed.conclude(msgspec.structs.replace(RESPONSE, id="resp_late"), is_kept=True)
    assert (await refused(idempotency)).status == 409
    await second.note("resp_2")
    await second.conclude(msgspec.structs.replace(RESPONSE, id="resp_2"), is_kept=True)
    assert await idempotency.begin(ANN, "key", BODY, find=never) == Replay("resp_2")


async def test_the_key_of_a_crashed_request_is_still_refused_with_another_body(
    idempotency: Idempotency, clock: Clock
) -> None:
    await lost(idempotency)
    clock.now += LEASE_S + 1

    assert (await refused(idempotency, body=b"another")).status == 422


async def test_a_lookup_that_fails_leaves_the_key_as_it_is(
    idempotency: Idempotency, clock: Clock
) -> None:
    async def fails(_response_id: str) -> bool:
        raise StoreError("gone")

    await lost(idempotency)
    clock.now += LEASE_S + 1
    with pytest.raises(StoreError):
        await idempotency.begin(ANN, "key", BODY, find=fails)

    assert await idempotency.begin(ANN, "key", BODY, find=found(NOTED)) == Replay(NOTED)


async def test_a_day_after_a_crash_nothing_is_known_of_the_key(
    idempotency: Idempotency, clock: Clock
) -> None:
    await lost(idempotency)
    clock.now += RESULT_S + 1

    await claimed(idempotency, body=b"another")


async def test_a_result_that_could_not_be_noted_as_one_is_found_when_the_claim_has_run_out(
    clock: Clock,
) -> None:
    store = Broken("finish", clock=clock)
    idempotency = Idempotency(store, clock=clock)
    async with await lost(idempotency) as begun:
        await begun.conclude(RESPONSE, is_kept=True)
    store.broken.clear()
    assert (await refused(idempotency)).status == 409

    clock.now += LEASE_S + 1

    assert await idempotency.begin(ANN, "key", BODY, find=found(NOTED)) == Replay(NOTED)


async def test_a_response_that_cannot_be_noted_is_an_error_and_frees_the_key() -> None:
    store = Broken("note")
    idempotency = Idempotency(store)
    with pytest.raises(StoreError):
        async with await claimed(idempotency) as begun:
            await begun.note(NOTED)

    await claimed(idempotency)


async def test_a_noted_request_that_came_to_nothing_lets_its_key_be_used_again(
    idempotency: Idempotency,
) -> None:
    async with await lost(idempotency):
        pass

    await claimed(idempotency, body=b"another")


async def test_a_save_that_failed_but_was_made_is_the_result(idempotency: Idempotency) -> None:
    async with await claimed(idempotency, find=found(NOTED)) as begun:
        await begun.note(NOTED)
        await begun.conclude(RESPONSE, is_kept=False)

    assert await idempotency.begin(ANN, "key", BODY, find=never) == Replay(NOTED)


async def test_a_save_that_failed_lets_the_key_be_used_again(idempotency: Idempotency) -> None:
    async with await claimed(idempotency, find=found()) as begun:
        await begun.note(NOTED)
        await begun.conclude(RESPONSE, is_kept=False)
        await claimed(idempotency, body=b"another")


@pytest.mark.parametrize(
    ("status", "stays"), [("completed", True), ("incomplete", True), ("failed", False)]
)
async def test_a_turn_that_only_its_conversation_keeps_holds_its_key_where_it_added_items(
    idempotency: Idempotency, status: str, stays: bool
) -> None:
    response = msgspec.structs.replace(
        RESPONSE, store=False, conversation=ResponseConversation("conv_1"), status=Status(status)
    )
    async with await lost(idempotency) as begun:
        await begun.conclude(response, is_kept=True)

    again = await idempotency.begin(ANN, "key", BODY, find=never)
    assert isinstance(again, Replay) is stays


async def test_another_tenants_key_is_an_unused_one(idempotency: Idempotency) -> None:
    await (await claimed(idempotency)).conclude(RESPONSE, is_kept=True)

    for keys in (IsolationKeys("bob"), IsolationKeys("ann", "chat")):
        assert isinstance(await idempotency.begin(keys, "key", b"another", find=never), Claimed)


@pytest.mark.parametrize("error", [StoreError("gone"), asyncio.CancelledError()])
async def test_a_claim_that_failed_but_was_made_is_not_in_the_way_of_a_retry(
    error: BaseException,
) -> None:
    store = Broken("claim", error=error)
    idempotency = Idempotency(store)
    with pytest.raises(type(error)):
        await idempotency.begin(ANN, "key", BODY, find=never)

    store.broken.clear()

    await claimed(idempotency)


async def test_a_claim_that_failed_is_told_as_that_also_where_its_release_fails() -> None:
    idempotency = Idempotency(Broken("claim", "release"))

    with pytest.raises(StoreError, match="gone"):
        await idempotency.begin(ANN, "key", BODY, find=never)


@pytest.mark.parametrize("is_kept", [True, False])
async def test_an_end_that_cannot_be_noted_is_logged_without_the_key_and_harms_no_turn(
    caplog: pytest.LogCaptureFixture, is_kept: bool
) -> None:
    idempotency = Idempotency(Broken("finish", "release"))

    with caplog.at_level(logging.ERROR):
        async with await claimed(idempotency, "secret-key") as begun:
            await begun.conclude(RESPONSE, is_kept=is_kept)

    (record,) = caplog.records
    assert "idempotency key not" in record.getMessage()
    assert "secret-key" not in str(vars(record))


NOW = 100.0
KEPT = Entry(b"a", "first", NOW)


@pytest.mark.parametrize(
    ("kept", "asked", "claim"),
    [
        (None, Entry(b"a", "t", 200.0), Claim(Verdict.FIRST)),
        (KEPT, Entry(b"a", "t", 200.0), Claim(Verdict.IN_PROGRESS)),
        (KEPT, Entry(b"b", "t", 200.0), Claim(Verdict.MISMATCH)),
        (KEPT, Entry(b"a", "first", 200.0), Claim(Verdict.FIRST)),
        (Entry(b"a", "first", NOW - 1), Entry(b"b", "t", 200.0), Claim(Verdict.FIRST)),
        (Entry(b"a", "first", NOW, "r"), Entry(b"a", "t", 200.0), Claim(Verdict.REPLAY, "r")),
        (Entry(b"a", "first", NOW, "r"), Entry(b"b", "t", 200.0), Claim(Verdict.MISMATCH)),
        (
            Entry(b"a", "first", 900.0, "r", NOW),
            Entry(b"a", "t", 200.0),
            Claim(Verdict.IN_PROGRESS),
        ),
        (
            Entry(b"a", "first", 900.0, "r", NOW - 1),
            Entry(b"a", "t", 200.0),
            Claim(Verdict.RAN_OUT, "r", "first"),
        ),
        (
            Entry(b"a", "first", 900.0, "r", NOW - 1),
            Entry(b"b", "t", 200.0),
            Claim(Verdict.MISMATCH),
        ),
        (Entry(b"a", "first", NOW - 1, "r"), Entry(b"a", "t", 200.0), Claim(Verdict.FIRST)),
    ],
)
def test_a_claim_is_judged_by_what_is_kept(kept: Entry | None, asked: Entry, claim: Claim) -> None:
    assert judged(kept, asked, NOW) == claim


async def test_what_a_store_is_given_is_a_hash_and_a_token_of_each_request(clock: Clock) -> None:
    given: list[Entry] = []

    class Noting(InMemoryIdempotencyStore):
        async def claim(self, keys: IsolationKeys, key: str, entry: Entry, /) -> Claim:
            given.append(entry)
            return Claim(Verdict.FIRST)

    store: IdempotencyStore = Noting()
    tokens = iter(["one", "two"])
    idempotency = Idempotency(store, clock=clock, new_token=lambda _size: next(tokens))
    await idempotency.begin(ANN, "key", BODY, limit_s=60, find=never)
    await idempotency.begin(ANN, "key", BODY, limit_s=60, find=never)

    until = clock.now + 60 + MARGIN_S
    assert given == [Entry(sha256(BODY).digest(), token, until) for token in ("one", "two")]
