"""What is logged and measured, and what is not."""

import json
import logging

import pytest

from channel.faults import log_fault
from channel.http import request_id
from channel.ports import TurnFacts
from infra.logs import log_readably, log_to
from infra.settings import Settings
from infra.telemetry import PowertoolsTelemetry, log_as_json


FACTS = TurnFacts(
    outcome="completed",
    duration_ms=1250.0,
    first_event_ms=200.0,
    input_tokens=12,
    output_tokens=34,
    stream=True,
)


def fail() -> Exception:
    nothing: dict[str, str] = {}
    with pytest.raises(KeyError) as raised:
        nothing["my secret"]
    return raised.value


def test_a_turn_is_one_metric_line_with_two_dimensions(capsys: pytest.CaptureFixture[str]) -> None:
    PowertoolsTelemetry(service="support", agent="a:b").turn_finished(FACTS)

    line = json.loads(capsys.readouterr().out)
    directive = line["_aws"]["CloudWatchMetrics"][0]
    values = {metric["Name"]: line[metric["Name"]] for metric in directive["Metrics"]}
    assert sorted(directive["Dimensions"][0]) == ["agent", "service"]
    assert (line["service"], line["agent"]) == ("support", "a:b")
    assert values == {
        "Completed": [1.0],
        "ResponseDuration": [1250.0],
        "TimeToFirstEvent": [200.0],
        "InputTokens": [12.0],
        "OutputTokens": [34.0],
    }


def test_a_turn_without_an_event_has_no_time_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    facts = TurnFacts(
        outcome="failed",
        duration_ms=1.0,
        first_event_ms=None,
        input_tokens=0,
        output_tokens=0,
        stream=False,
    )
    PowertoolsTelemetry(service="support", agent="a:b").turn_finished(facts)

    line = json.loads(capsys.readouterr().out)
    assert line["Failed"] == [1.0]
    assert "TimeToFirstEvent" not in line


def test_on_lambda_a_record_is_a_json_line_with_the_id_that_the_client_sees(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log_as_json(Settings(service="support"))
    token = request_id.set("invocation-1")
    try:
        logging.getLogger("channel.host").info("response finished", extra={"items": 2})
    finally:
        request_id.reset(token)

    line = json.loads(capsys.readouterr().out)
    facts = {
        name: line[name] for name in ("level", "message", "service", "items", "correlation_id")
    }
    assert facts == {
        "level": "INFO",
        "message": "response finished",
        "service": "support",
        "items": 2,
        "correlation_id": "invocation-1",
    }


def test_the_level_is_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    log_as_json(Settings(log_level="ERROR"))
    logging.getLogger("infra.dynamodb").warning("slow")

    assert not capsys.readouterr().out


@pytest.mark.parametrize("log", [log_as_json, log_readably])
@pytest.mark.parametrize("is_sensitive", [False, True])
def test_the_text_of_an_exception_is_logged_for_those_only_who_asked_for_it(
    log: type, capsys: pytest.CaptureFixture[str], *, is_sensitive: bool
) -> None:
    log(Settings(log_sensitive=is_sensitive))
    log_fault(logging.getLogger("channel.host"), "agent failed", fail())
    logging.getLogger("mangum.http").error("An error occurred", exc_info=fail())

    said = "".join(capsys.readouterr())
    assert ("my secret" in said) == is_sensitive
    assert said.count("KeyError") >= 2
    assert "test_telemetry.py" in said


def test_a_terminal_gets_one_readable_line_with_the_facts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log_readably(Settings())
    logging.getLogger("channel.host").warning(
        "agent failed", extra={"error_at": ["a.py:1", "b.py:2"], "n": 1}
    )

    first, *rest = capsys.readouterr().err.splitlines()
    assert first.endswith("WARNING agent failed n=1")
    assert rest == ["    a.py:1", "    b.py:2"]


def test_what_a_framework_logs_is_shown_by_its_place_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log_readably(Settings())
    logging.getLogger("strands.tools.executors").warning("arguments=%s", "my secret")

    told = capsys.readouterr().err
    assert "strands.tools.executors logged at test_telemetry.py:" in told
    assert "my secret" not in told


def test_what_a_framework_logs_is_left_as_it_is_for_those_who_asked_for_it() -> None:
    log_readably(Settings(log_sensitive=True))

    logger = logging.getLogger("strands")
    assert (logger.handlers, logger.propagate) == ([], True)


def test_libraries_that_write_whole_requests_at_debug_are_kept_quiet() -> None:
    names = ("boto3", "botocore", "urllib3")
    was = {name: logging.getLogger(name).level for name in names}
    try:
        log_to(logging.NullHandler(), Settings(log_level="DEBUG"))

        assert [logging.getLogger(name).level for name in names] == [logging.INFO] * 3
    finally:
        for name, level in was.items():
            logging.getLogger(name).setLevel(level)
