"""Settings: the only reader of the environment. A bad value is one sentence, before anything starts."""

import os
import re
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from msgspec import Struct

from channel.agent import OPTION_NAMES


DEFAULT_AGENT: Final = "channel.agents.demo:agent"
MAX_PORT: Final = 65535
LOCAL_TABLE: Final = "lambda-responses"
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class SettingsError(ValueError):
    """A setting is wrong: one sentence naming it, what was given and what is accepted."""


class Settings(Struct, frozen=True, kw_only=True):
    """What the environment asks for.

    ========================== ========================= =========================================
    name                       default                   meaning
    ========================== ========================= =========================================
    AGENT                      channel.agents.demo:agent the agent: `module:attribute` or a factory
    MODEL_NAME                 agent                     the model id that /v1/models shows
    TABLE_NAME                 unset                     DynamoDB table of history and keys
    DYNAMODB_ENDPOINT          unset                     URL of a DynamoDB-compatible engine
    AWS_REGION                 AWS_DEFAULT_REGION        region of the table
    CALLER_OPTIONS             none                      request fields that reach the agent, by comma
    CORS_ORIGINS               none                      browser origins that may call, by comma, or *
    KEEPALIVE_S                15                        idle seconds before a keepalive event; 0 = off
    FIRST_EVENT_GRACE_S        2                         seconds the first event is waited for
    RETENTION_DAYS             30                        days that history is kept
    STRICT_READS               0                         strongly consistent reads, at twice the price
    SHOW_TOOLS                 0                         show the agent's own tools to the client
    LOG_LEVEL                  INFO                      DEBUG, INFO, WARNING, ERROR or CRITICAL
    LOG_SENSITIVE              0 (make run: 1)           logs may hold message text
    DEMO_DELAY_MS              0 (make run: 30)          pause of the demo agent between words
    PORT                       8000                      port of the local server; 0 = any free one
    POWERTOOLS_SERVICE_NAME    lambda-responses          service name in logs and metrics
    AWS_LAMBDA_FUNCTION_NAME   set by Lambda             says that this is Lambda
    AWS_SAM_LOCAL              set by sam local          memory store (without DYNAMODB_ENDPOINT) and
                                                         the development keys
    ========================== ========================= =========================================

    A switch takes 1, true, yes or on, and 0, false, no or off. An empty value is an unset one.
    """

    agent: str = DEFAULT_AGENT
    model_name: str = "agent"
    table_name: str | None = None
    dynamodb_endpoint: str | None = None
    region: str | None = None
    caller_options: frozenset[str] = frozenset()
    cors_origins: tuple[str, ...] = ()
    keepalive_s: float = 15.0
    first_event_grace_s: float = 2.0
    retention_days: int = 30
    strict_reads: bool = False
    show_tools: bool = False
    log_level: str = "INFO"
    log_sensitive: bool | None = None
    demo_delay_s: float | None = None
    port: int = 8000
    service: str = "lambda-responses"
    on_lambda: bool = False
    has_development_keys: bool = False

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **given: str | None) -> "Settings":
        """Read the settings, of which those `given` go first; raises `SettingsError`."""
        chosen = {name: value for name, value in given.items() if value is not None}
        read = _Reader({**environ, **chosen})
        sam_local = read.switch("AWS_SAM_LOCAL", default=False)
        endpoint = read.value("DYNAMODB_ENDPOINT", None, _url)
        # The template names a table that sam local does not have: its containers have none of ours.
        table = None if sam_local and endpoint is None else read.value("TABLE_NAME", None, _table)
        return cls(
            agent=read.value("AGENT", DEFAULT_AGENT, _reference),
            model_name=read.value("MODEL_NAME", "agent", _model),
            table_name=LOCAL_TABLE if endpoint and table is None else table,
            dynamodb_endpoint=endpoint,
            region=read.value("AWS_REGION", None, _region)
            or read.value("AWS_DEFAULT_REGION", None, _region),
            caller_options=read.value("CALLER_OPTIONS", frozenset(), _options),
            cors_origins=read.value("CORS_ORIGINS", (), _origins),
            keepalive_s=read.number("KEEPALIVE_S", 15, 0, 3600),
            first_event_grace_s=read.number("FIRST_EVENT_GRACE_S", 2, 0, 900),
            retention_days=int(read.number("RETENTION_DAYS", 30, 1, 36500, whole=True)),
            strict_reads=read.switch("STRICT_READS", default=False),
            show_tools=read.switch("SHOW_TOOLS", default=False),
            log_level=read.value("LOG_LEVEL", "INFO", _log_level),
            log_sensitive=read.value("LOG_SENSITIVE", None, _switch),
            demo_delay_s=None
            if (ms := read.number("DEMO_DELAY_MS", None, 0, 60_000)) is None
            else ms / 1000,
            port=int(read.number("PORT", 8000, 0, MAX_PORT, whole=True)),
            service=read.text("POWERTOOLS_SERVICE_NAME") or "lambda-responses",
            on_lambda=bool(read.text("AWS_LAMBDA_FUNCTION_NAME")),
            has_development_keys=sam_local,
        )


_Default = TypeVar("_Default")
_Parsed = TypeVar("_Parsed")


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str) -> str | None:
        return self._environ.get(name, "").strip() or None

    def value(
        self, name: str, default: _Default, parse: Callable[[str], _Parsed]
    ) -> _Default | _Parsed:
        given = self.text(name)
        if given is None:
            return default
        try:
            return parse(given)
        except ValueError as error:
            accepted = str(error)
        shown = given if len(given) <= _SHOWN else f"{given[:_SHOWN]}…"
        msg = f"The setting {name} is {shown!r}, but it must be {accepted}."
        raise SettingsError(msg)

    def number(
        self, name: str, default: _Default, low: float, high: float, *, whole: bool = False
    ) -> _Default | float:
        def parse(given: str) -> float:
            matched = _NUMBER.fullmatch(given)
            if not matched or (whole and matched[1]) or not low <= float(given) <= high:
                msg = f"a {'whole number' if whole else 'number'} from {low} to {high}"
                raise ValueError(msg)
            return float(given)

        return self.value(name, default, parse)

    def switch(self, name: str, *, default: bool) -> bool:
        return self.value(name, default, _switch)


_URL: Final = re.compile(
    r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?(?:/[!-~]*)?"
)
_NUMBER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_SHOWN: Final = 80


def _switch(given: str) -> bool:
    match given.lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
        case _:
            msg = "1 or 0 (or true, yes, on, false, no, off)"
            raise ValueError(msg)


def _reference(given: str) -> str:
    module, colon, attribute = given.partition(":")
    if not (colon and _is_dotted_name(module) and _is_dotted_name(attribute)):
        msg = f"module:attribute, such as {DEFAULT_AGENT}"
        raise ValueError(msg)
    return given


def _is_dotted_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _model(given: str) -> str:
    if not given.isprintable() or " " in given:
        msg = "one printable word"
        raise ValueError(msg)
    return given


def _table(given: str) -> str:
    allowed = given.isascii() and given.replace("-", "").replace(".", "").replace("_", "").isalnum()
    if not (allowed and _TABLE_NAME_MIN <= len(given) <= _TABLE_NAME_MAX):
        msg = "a DynamoDB table name (3 to 255 letters, digits, dots, dashes and underscores)"
        raise ValueError(msg)
    return given


_TABLE_NAME_MIN: Final = 3
_TABLE_NAME_MAX: Final = 255


def _url(given: str) -> str:
    parts = _URL.fullmatch(given)
    if parts is None or int(parts["port"] or 0) > MAX_PORT:
        msg = "an http or https URL"
        raise ValueError(msg)
    return given


def _region(given: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,40}", given):
        msg = "the name of an AWS region, such as eu-central-1"
        raise ValueError(msg)
    return given


def _options(given: str) -> frozenset[str]:
    names = frozenset(_split(given))
    if names - OPTION_NAMES:
        msg = f"a comma-separated list of {', '.join(sorted(OPTION_NAMES))}"
        raise ValueError(msg)
    return names


def _origins(given: str) -> tuple[str, ...]:
    origins = tuple(_split(given))
    if origins != ("*",) and not all(_is_origin(origin) for origin in origins):
        msg = "a comma-separated list of origins, such as https://app.example.com, or *"
        raise ValueError(msg)
    return origins


def _is_origin(text: str) -> bool:
    scheme, separator, host = text.partition("://")
    return bool(scheme.isalnum() and separator and host) and not set(host) & set("/?#* ")


def _split(given: str) -> list[str]:
    return [part.strip() for part in given.split(",") if part.strip()]


def _log_level(given: str) -> str:
    level = "WARNING" if given.upper() == "WARN" else given.upper()  # Lambda's own word is WARN
    if level not in LOG_LEVELS:
        msg = f"one of {', '.join(LOG_LEVELS)}"
        raise ValueError(msg)
    return level
