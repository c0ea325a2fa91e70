"""The worker: jobs of ours run by their kind, and any other event is told what is supported."""

from time import monotonic
from typing import Any

import pytest

from channel.deadline import Deadline
from handler.events import UnknownEventError
from handler.worker import JobWorker


pytestmark = pytest.mark.anyio

SECRET = "the user's words"
PAYLOAD = {"response_id": "resp_1", "n": [1, None, {"a": "b"}]}


class Context:
    """What Lambda says of an invocation: how much of its time is left."""

    def __init__(self, left_ms: int = 900_000) -> None:
        self._left_ms = left_ms

    def get_remaining_time_in_millis(self) -> int:
        return self._left_ms


class Ran:
    """A job handler that notes what it was given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.payloads: list[dict[str, Any]] = []
        self.deadlines: list[Deadline] = []
        self._error = error

    async def __call__(self, payload: dict[str, Any], deadline: Deadline | None) -> None:
        assert deadline is not None
        self.payloads.append(payload)
        self.deadlines.append(deadline)
        if self._error is not None:
            raise self._error


async def test_a_job_is_run_by_what_takes_its_kind() -> None:
    one, other = Ran(), Ran()
    worker = JobWorker({"one": one, "other": other}, 5.0)

    answer: Any = await worker({"kind": "other", "payload": PAYLOAD}, Context())  # type: ignore[func-returns-value] # it is what Lambda gets

    assert answer is None
    assert (one.payloads, other.payloads) == ([], [PAYLOAD])


@pytest.mark.parametrize(
    ("left_ms", "margin_s", "turn_s"), [(900_000, 5.0, 895.0), (60_000, 10.0, 50.0), (4_000, 2, 2)]
)
async def test_a_job_is_over_before_its_invocation_by_the_margin(
    left_ms: int, margin_s: float, turn_s: float
) -> None:
    ran = Ran()
    worker = JobWorker({"one": ran}, margin_s)
    before = monotonic()

    await worker({"kind": "one", "payload": {}}, Context(left_ms))

    (deadline,) = ran.deadlines
    assert before + turn_s <= deadline.ends_at <= monotonic() + turn_s
    assert deadline.margin_s == margin_s


async def test_the_margin_is_at_most_half_of_the_time_that_is_left() -> None:
    ran = Ran()
    before = monotonic()

    await JobWorker({"one": ran}, 5.0)({"kind": "one", "payload": {}}, Context(3_000))

    (deadline,) = ran.deadlines
    assert deadline.margin_s == 1.5
    assert before + 1.5 <= deadline.ends_at <= monotonic() + 1.5


async def test_what_a_job_raises_is_raised_for_lambda_to_try_again() -> None:
    error = ZeroDivisionError()

    with pytest.raises(ZeroDivisionError) as raised:
        await JobWorker({"one": Ran(error)}, 5.0)({"kind": "one", "payload": {}}, Context())

    assert raised.value is error


async def test_a_kind_that_nobody_takes_is_told_which_are_taken() -> None:
    ran = Ran()
    worker = JobWorker({"one": ran, "other": ran}, 5.0)

    with pytest.raises(UnknownEventError) as raised:
        await worker({"kind": SECRET, "payload": {SECRET: SECRET}}, Context())

    said = str(raised.value)
    assert said.startswith("The event is an object with the fields [kind, payload].")
    assert said.endswith("and jobs of the kind one or other.")
    assert SECRET not in said
    assert ran.payloads == []


@pytest.mark.parametrize(
    ("event", "got"),
    [
        (None, "a value of type NoneType"),
        ([], "a value of type list"),
        ("one", "a value of type str"),
        (1, "a value of type int"),
        ({}, "an object with the fields []"),
        ({"kind": "one"}, "an object with the fields [kind]"),
        ({"payload": {}}, "an object with the fields [payload]"),
        ({"kind": 1, "payload": {}}, "an object with the fields [kind, payload]"),
        ({"kind": ["one"], "payload": {}}, "an object with the fields [kind, payload]"),
        ({"kind": "one", "payload": [1]}, "an object with the fields [kind, payload]"),
        ({"kind": "one", "payload": None}, "an object with the fields [kind, payload]"),
        ({"kind": "", "payload": {}}, "an object with the fields [kind, payload]"),
        ({"Records": [{"body": SECRET}]}, "an object with the fields [Records]"),
    ],
)
async def test_what_is_no_job_is_told_what_is(event: Any, got: str) -> None:
    ran = Ran()

    with pytest.raises(UnknownEventError) as raised:
        await JobWorker({"one": ran}, 5.0)(event, Context())

    said = str(raised.value)
    assert said.startswith(f"The event is {got}. Supported are HTTP requests through a ")
    assert said.endswith("; and jobs of the kind one.")
    assert SECRET not in said
    assert raised.value.__cause__ is None
    assert ran.payloads == []


async def test_where_there_are_no_jobs_that_is_said() -> None:
    with pytest.raises(UnknownEventError, match="and none is"):
        await JobWorker({}, 5.0)({"kind": "one", "payload": {}}, Context())


async def test_what_a_later_version_adds_to_a_job_is_passed_over() -> None:
    ran = Ran()

    await JobWorker({"one": ran}, 5.0)({"kind": "one", "payload": PAYLOAD, "v": 2}, Context())

    assert ran.payloads == [PAYLOAD]
