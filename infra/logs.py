"""How log records come out: readable lines for a terminal; places instead of texts for every handler."""

import logging
from typing import Final

from channel.faults import SENSITIVE, fault_facts
from channel.http import request_id
from infra.settings import Settings


LOGGERS: Final = ("channel", "handler", "infra", "mangum")
TALKATIVE: Final = ("boto3", "botocore", "s3transfer", "urllib3")
"""At DEBUG these write whole requests: signatures, the tenants' secret, and everybody's words."""
FRAMEWORKS: Final = frozenset(
    {
        *(
            "agent_framework",
            "agents",
            "httpx",
            "httpx2",
            "langchain",
            "langchain_core",
            "langgraph",
        ),
        *("langsmith", "mcp", "openai", "openai-agents", "pydantic_ai", "strands"),
    }
)
"""Their warnings quote the arguments of tools and the texts of exceptions, which may be a user's."""


def log_readably(settings: Settings) -> None:
    """Make the project's loggers write readable lines to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Readable("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    log_to(handler, settings)


def log_to(handler: logging.Handler, settings: Settings) -> None:
    """Make the project's loggers write to this handler only, with what the settings allow."""
    handler.addFilter(_name_request)
    if settings.log_sensitive:
        SENSITIVE.setLevel(logging.NOTSET)
    else:
        handler.addFilter(_hide_text)
    if not settings.log_sensitive:
        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.INFO)
    for name in LOGGERS if settings.log_sensitive else (*LOGGERS, *FRAMEWORKS):
        logger = logging.getLogger(name)
        logger.setLevel(settings.log_level)
        logger.handlers = [handler]
        logger.propagate = False  # Lambda's handler at the root would write each line again


def _name_request(record: logging.LogRecord) -> bool:
    """Add the id that the client sees, from the context of the request: turns may run side by side."""
    if identifier := request_id.get():
        record.correlation_id = identifier
    vars(record).pop("taskName", None)  # Python 3.12 adds it, and it says nothing
    return True


def _hide_text(record: logging.LogRecord) -> bool:
    """Replace an exception, and what a framework says, by types and places: a text may be the user's."""
    if record.exc_info and record.exc_info[1]:
        vars(record).update(fault_facts(record.exc_info[1]))
    record.exc_info = record.exc_text = None
    if record.name.partition(".")[0] in FRAMEWORKS:
        record.msg, record.args = f"{record.name} logged at {record.filename}:{record.lineno}", ()
    return True


class _Readable(logging.Formatter):
    """The message, then what `extra` gave: values as `name=value`, lists a line each."""

    def format(self, record: logging.LogRecord) -> str:
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        first, *rest = super().format(record).splitlines()
        values = [f"{name}={value}" for name, value in extra.items() if not isinstance(value, list)]
        lines = [
            f"    {line}" for value in extra.values() if isinstance(value, list) for line in value
        ]
        return "\n".join([" ".join([first, *values]), *lines, *rest])


_STANDARD: Final = {*vars(logging.makeLogRecord({})), "message", "asctime"}
