"""Logs of a runtime of our own: the root logger writes as under Lambda's own, with each invocation's ids."""

import json
import logging
import sys
import time
import traceback
from contextvars import ContextVar
from typing import Any, Final

import msgspec

from channel.http import request_id
from infra.settings import RuntimeSettings


trace_id: ContextVar[str] = ContextVar("trace_id", default="")
"""The X-Ray trace of the invocation that is being served."""

_TEXT: Final = "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s"
_STANDARD: Final = {
    *vars(logging.makeLogRecord({})),
    *("message", "asctime", "aws_request_id", "taskName"),
}
_encode = msgspec.json.Encoder(enc_hook=str).encode


def log_like_lambda(settings: RuntimeSettings) -> None:
    """Let the root logger write to stdout: JSON lines or text, as the function is configured.

    Lines leave the process at once, also what is printed: it may be frozen at any time.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(_name_invocation)
    handler.setFormatter(_JSONLines() if settings.logs_json else _text())
    root = logging.getLogger()
    root.handlers = [handler]
    if settings.log_level is not None:
        root.setLevel(settings.log_level)


def _name_invocation(record: logging.LogRecord) -> bool:
    record.aws_request_id = request_id.get()
    return True


def _text() -> logging.Formatter:
    formatter = logging.Formatter(_TEXT, "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    return formatter


class _JSONLines(logging.Formatter):
    """The fields that Lambda's own runtime writes, and what `extra` gave."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        try:
            return _encode(fields).decode()
        except (TypeError, ValueError, RecursionError):  # lone surrogates, or what contains itself
            return json.dumps({name: str(value) for name, value in fields.items()})


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    is_object = isinstance(record.msg, dict) and not record.args
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    fields: dict[str, Any] = {
        "timestamp": f"{moment}.{int(record.msecs):03}Z",
        "level": record.levelname,
        "message": record.msg if is_object else record.getMessage(),
        "logger": record.name,
        **_ids(),
    }
    if record.exc_info and record.exc_info[1]:
        error = record.exc_info[1]
        fields["errorType"] = type(error).__name__
        fields["errorMessage"] = str(error)
        fields["stackTrace"] = traceback.format_tb(error.__traceback__)
        fields["location"] = f"{record.pathname}:{record.funcName}:{record.lineno}"
    for name, value in vars(record).items():
        if name not in _STANDARD and value is not None:
            fields.setdefault(name, value)
    return fields


def _ids() -> dict[str, str]:
    ids = {"requestId": request_id.get(), "xrayTraceId": trace_id.get()}
    return {name: value for name, value in ids.items() if value}
