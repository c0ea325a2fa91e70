import logging

import pytest

from channel.faults import SENSITIVE, fault_facts, log_fault


LOG = logging.getLogger("tests.faults")


def fail() -> None:
    raise ValueError("secret") from KeyError("secret cause")


def failed() -> ValueError:
    with pytest.raises(ValueError, match="secret") as caught:
        fail()
    return caught.value


def test_a_fault_is_a_type_a_cause_and_places() -> None:
    facts = fault_facts(failed())

    assert (facts["error_type"], facts["error_cause"]) == ("ValueError", "KeyError")
    assert facts["error_at"][-1].endswith(" in fail")
    assert "secret" not in str(facts)


def test_a_fault_that_was_never_raised_has_no_places() -> None:
    assert fault_facts(ValueError("secret")) == {"error_type": "ValueError", "error_at": []}


def test_only_the_innermost_places_are_named() -> None:
    def dive(depth: int) -> None:
        if depth == 0:
            raise ValueError
        dive(depth - 1)

    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the type is the point
        dive(50)

    assert len(fault_facts(caught.value)["error_at"]) == 5


def test_the_log_has_the_facts_once_and_no_text(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        log_fault(LOG, "it failed", failed())

    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == (
        "tests.faults",
        "ERROR",
        "it failed: ValueError",
    )
    assert "secret" not in str(vars(record))


def test_the_text_goes_to_those_who_asked_for_it(caplog: pytest.LogCaptureFixture) -> None:
    was = SENSITIVE.level
    SENSITIVE.setLevel(logging.ERROR)
    try:
        log_fault(LOG, "it failed", failed())
    finally:
        SENSITIVE.setLevel(was)

    assert "ValueError: secret" in caplog.text
