"""The log lines of a runtime of our own: those that Lambda's runtime writes, with each invocation's ids."""

import asyncio
import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from channel.http import request_id
from infra.runtime_logs import log_like_lambda, trace_id
from infra.settings import RuntimeSettings


LOG = logging.getLogger("agent")
MOMENT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture(autouse=True)
def _root_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers, root.level
    yield
    root.handlers, root.level = before
    root.setLevel(before[1])


@pytest.fixture(autouse=True)
def _ids() -> Iterator[None]:
    tokens = request_id.set("id-1"), trace_id.set("Root=1-a;Sampled=1")
    yield
    request_id.reset(tokens[0])
    trace_id.reset(tokens[1])


def log(*, as_json: bool, level: str | None = "INFO") -> None:
    log_like_lambda(
        RuntimeSettings(api_address="h:1", handler="", logs_json=as_json, log_level=level)
    )


def line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_a_line_of_text_is_as_lambda_writes_it(capsys: pytest.CaptureFixture[str]) -> None:
    log(as_json=False)

    LOG.warning("%s is %d", "one", 1)

    out = capsys.readouterr().out
    assert re.fullmatch(rf"\[WARNING\]\t{MOMENT}\tid-1\tone is 1\n", out)


def test_a_line_of_json_is_as_lambda_writes_it(capsys: pytest.CaptureFixture[str]) -> None:
    log(as_json=True)

    LOG.warning("%s is %d", "grüß", 1)

    told = line(capsys)
    assert re.fullmatch(MOMENT, told.pop("timestamp"))
    assert told == {
        "level": "WARNING",
        "message": "grüß is 1",
        "logger": "agent",
        "requestId": "id-1",
        "xrayTraceId": "Root=1-a;Sampled=1",
    }


@pytest.mark.parametrize("as_json", [True, False])
def test_times_are_utc(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    log(as_json=as_json)
    record = logging.LogRecord("agent", logging.INFO, "file", 1, "said", None, None)
    record.created, record.msecs = 1790000000.25, 250.0

    LOG.handle(record)

    assert "2026-09-21T14:13:20.250Z" in capsys.readouterr().out


@pytest.mark.parametrize("as_json", [True, False])
def test_lines_carry_the_id_of_their_invocation(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    log(as_json=as_json)

    async def invocation(name: str) -> None:
        request_id.set(name)
        for _ in range(2):
            await asyncio.sleep(0)
            LOG.info("by %s", name)

    async def several() -> None:
        await asyncio.gather(invocation("id-2"), invocation("id-3"))

    asyncio.run(several())

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for said in lines:
        assert re.search(r"id-\d", said).group() == re.search(r"by (id-\d)", said)[1]  # type: ignore[index, union-attr]


def test_outside_of_an_invocation_there_are_no_ids(capsys: pytest.CaptureFixture[str]) -> None:
    request_id.set("")
    trace_id.set("")
    log(as_json=True)

    LOG.info("init")

    assert set(line(capsys)) == {"timestamp", "level", "message", "logger"}


def fail() -> None:
    msg = "no table"
    raise LookupError(msg)


def test_an_exception_is_fields_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    log(as_json=True)

    try:
        fail()
    except LookupError:
        LOG.exception("failed")

    told = line(capsys)
    assert (told["message"], told["level"]) == ("failed", "ERROR")
    assert (told["errorType"], told["errorMessage"]) == ("LookupError", "no table")
    assert told["stackTrace"][-1].endswith("raise LookupError(msg)\n")
    assert re.fullmatch(
        rf"{re.escape(__file__)}:test_an_exception_is_fields_of_its_own:\d+", told["location"]
    )


def test_an_exception_follows_its_line_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    log(as_json=False)

    LOG.error("failed", exc_info=LookupError("no table"))

    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.endswith("\tid-1\tfailed")
    assert last == "LookupError: no table"


@pytest.mark.parametrize("as_json", [True, False])
def test_no_exception_is_none(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    log(as_json=as_json)

    LOG.error("failed", exc_info=True)  # noqa: LOG014 - as libraries do

    out = capsys.readouterr().out
    assert "failed" in out
    assert "errorType" not in out


@pytest.mark.parametrize(
    "extra",
    [
        {"count": 3, "share": 0.5, "kinds": ["a", "b"]},
        {"count": 0, "is_retry": False, "text": "", "kinds": []},
    ],
)
def test_extras_are_fields_whatever_their_value(
    extra: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    log(as_json=True)

    LOG.info("said", extra=extra)

    told = line(capsys)
    assert {name: told[name] for name in extra} == extra


def test_extras_of_nothing_are_left_out_and_others_do_not_take_a_fields_place(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log(as_json=True)

    LOG.info("said", extra={"nothing": None, "level": "LOUD", "requestId": "id-9"})

    told = line(capsys)
    assert "nothing" not in told
    assert (told["level"], told["requestId"]) == ("INFO", "id-1")


def test_an_object_is_a_message_and_is_formatted_where_it_has_arguments(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log(as_json=True)

    LOG.info({"kind": "turn", "tokens": 7})
    LOG.info("%(kind)s", {"kind": "turn"})

    messages = [json.loads(said)["message"] for said in capsys.readouterr().out.splitlines()]
    assert messages == [{"kind": "turn", "tokens": 7}, "turn"]


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (LookupError("no table"), "no table"),
        ({("a", 1): 2}, {"('a', 1)": 2}),
        (float("nan"), None),
        (2**80, 2**80),
        ("\udce9", "\udce9"),
        (CIRCLE, "[[...]]"),
    ],
)
def test_what_json_does_not_know_is_text(
    value: Any, expected: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    log(as_json=True)

    LOG.info("said", extra={"value": value})

    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert (told["message"], told["value"], captured.err) == ("said", expected, "")


@pytest.mark.parametrize("as_json", [True, False])
def test_a_text_that_is_no_unicode_is_written_all_the_same(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "utf-8"))
    log(as_json=as_json)

    LOG.info("no file \udce9")

    assert rb"no file \udce9" in written.getvalue()
    assert written.getvalue().endswith(b"\n")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("DEBUG", ["DEBUG", "INFO", "ERROR"]),
        ("INFO", ["INFO", "ERROR"]),
        ("ERROR", ["ERROR"]),
        (None, ["ERROR"]),
    ],
)
def test_the_level_is_lambdas_or_else_pythons(
    level: str | None, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger().setLevel(logging.WARNING)
    log(as_json=True, level=level)

    LOG.debug("a")
    LOG.info("b")
    LOG.error("c")

    assert [json.loads(said)["level"] for said in capsys.readouterr().out.splitlines()] == expected


def test_handlers_of_before_write_nothing_any_more(capsys: pytest.CaptureFixture[str]) -> None:
    log(as_json=False)
    log(as_json=True)

    LOG.info("once")

    assert line(capsys)["message"] == "once"


def test_what_is_printed_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written = [io.BytesIO(), io.BytesIO()]
    for name, stream in zip(("stdout", "stderr"), written, strict=True):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, "utf-8"))
    log(as_json=False)

    print("out")  # noqa: T201
    print("err", file=sys.stderr)  # noqa: T201

    assert [stream.getvalue() for stream in written] == [b"out\n", b"err\n"]
