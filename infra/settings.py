"""Settings: the only reader of the environment. A bad value is one sentence, before anything starts."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, TypeVar

from msgspec import Struct

from channel.agent import OPTION_NAMES
from channel.masking import masked


DEFAULT_AGENT: Final = "channel.agents.demo:agent"
MAX_PORT: Final = 65535
LOCAL_TABLE: Final = "lambda-responses"
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class SettingsError(ValueError):
    """A setting is wrong: one sentence naming it, what was given and what is accepted."""


class SecretText(str):
    """Text that is not shown where the value that holds it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Show that there is one."""
        return "'…'"


class Settings(Struct, frozen=True, kw_only=True):
    """What the environment asks for.

    ========================== ========================= =========================================
    name                       default                   meaning
    ========================== ========================= =========================================
    AGENT                      channel.agents.demo:agent the agent: `module:attribute` (a framework's
                                                         agent, too, or a factory), `bedrock:<model id>`
                                                         or `openai:<model>@<base url>`
    AGENT_INSTRUCTIONS         none                      system prompt of a model that AGENT names
                                                         (`bedrock:…`, `openai:…`)
    OPENAI_API_KEY             none                      key of the upstream that AGENT names
    OPENAI_API_KEY_SECRET      none                      or the ARN or name of its secret in Secrets
                                                         Manager, read at the first turn
    BEDROCK_REGION             AWS_REGION                region of the Bedrock model that AGENT names
    BEDROCK_ENDPOINT           AWS's                     URL of a Bedrock-compatible engine
    BEDROCK_GUARDRAIL          none                      guardrail of that model, as `<id>:<version>`
    BEDROCK_PROMPT_CACHING     by the model              cache points in what that model is given
    MODEL_NAME                 agent                     the model id that /v1/models shows
    TABLE_NAME                 unset                     DynamoDB table of history and keys
    DYNAMODB_ENDPOINT          unset                     URL of a DynamoDB-compatible engine
    AWS_REGION                 AWS_DEFAULT_REGION        region of the table
    CALLER_OPTIONS             none                      request fields that reach the agent, by comma
    CORS_ORIGINS               none                      browser origins that may call, by comma, or *
    KEEPALIVE_S                15                        idle seconds before a keepalive event; 0 = off
    FIRST_EVENT_GRACE_S        2                         seconds the first event is waited for
    RETENTION_DAYS             30                        days that history is kept
    EVENT_RETENTION_MINUTES    60                        minutes that the events of a background stream
                                                         can be read again after it ended
    CANCELLABLE_STREAMS        0                         streams can be cancelled by their id, for one
                                                         write more each
    COMMANDS                   0                         users may type /reset and /help
    CHAT_SESSIONS              0                         requests of a delegate that name a chat, and
                                                         nothing to continue, go on where that chat was
    CALLER_TARGETS             0                         callers may choose where a reply goes, among
                                                         the identities that are theirs
    PUSH_CHANNELS              none                      where a reply may go besides its own channel, by
                                                         comma: webhook, eventbridge:<bus name or ARN>,
                                                         sns:<topic ARN>
    WEBHOOKS_ALLOW_PRIVATE     0 (locally: 1)            webhooks may go to http and private addresses
    STRICT_READS               0                         strongly consistent reads, at twice the price
    FUNCTION_URL_MODE          RESPONSE_STREAM           what the function URL expects: that, or
                                                         BUFFERED
    REST_API_MODE              BUFFERED                  what a REST API expects: that, or STREAM
    DEADLINE_MARGIN_S          5                         seconds before a time limit at which a turn is
                                                         ended, to be stored and told
    LOAD_BALANCER_TIMEOUT_S    60                        idle time-out of an Application Load Balancer
    SHOW_TOOLS                 0                         show the agent's own tools to the client
    LOG_LEVEL                  INFO                      DEBUG, INFO, WARNING, ERROR or CRITICAL
    LOG_SENSITIVE              0 (make run: 1)           logs may hold message text
    DEMO_DELAY_MS              0 (make run: 30)          pause of the demo agent between words
    PORT                       8000                      port of the local server; 0 = any free one
    POWERTOOLS_SERVICE_NAME    lambda-responses          service name in logs and metrics
    AWS_LAMBDA_FUNCTION_NAME   set by Lambda             says that this is Lambda
    FUNCTION_ALIAS             set by the template       alias by which the function invokes itself
    LAMBDA_ENDPOINT            set by `make url`         URL of a Lambda-compatible engine
    WEBSOCKET_ENDPOINT         set by the template       URL at which a WebSocket API takes messages
    AWS_SAM_LOCAL              set by sam local          memory store (without DYNAMODB_ENDPOINT) and
                                                         the development keys
    ========================== ========================= =========================================

    A switch takes 1, true, yes or on, and 0, false, no or off. An empty value is an unset one.
    """

    agent: str = DEFAULT_AGENT
    agent_instructions: str | None = None
    openai_api_key: SecretText | None = None
    openai_api_key_secret: str | None = None
    bedrock_region: str | None = None
    bedrock_endpoint: str | None = None
    bedrock_guardrail: tuple[str, str] | None = None
    """Its id, or its ARN, and its version."""
    bedrock_prompt_caching: bool | None = None
    model_name: str = "agent"
    table_name: str | None = None
    dynamodb_endpoint: str | None = None
    region: str | None = None
    caller_options: frozenset[str] = frozenset()
    cors_origins: tuple[str, ...] = ()
    keepalive_s: float = 15.0
    first_event_grace_s: float = 2.0
    retention_days: int = 30
    event_retention_minutes: int = 60
    cancellable_streams: bool = False
    commands: bool = False
    chat_sessions: bool = False
    caller_targets: bool = False
    push_channels: tuple[tuple[str, str], ...] = ()
    """Each kind once, with its bus or its topic."""
    webhooks_allow_private: bool = False
    strict_reads: bool = False
    url_streams: bool = True
    rest_api_streams: bool = False
    deadline_margin_s: float = 5.0
    load_balancer_timeout_s: float = 60.0
    show_tools: bool = False
    log_level: str = "INFO"
    log_sensitive: bool | None = None
    demo_delay_s: float | None = None
    port: int = 8000
    service: str = "lambda-responses"
    on_lambda: bool = False
    function: str = ""
    """The name by which the function invokes itself."""
    lambda_endpoint: str | None = None
    websocket_endpoint: str | None = None
    has_background: bool = True
    is_snap_start: bool = False
    has_development_keys: bool = False

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **given: str | None) -> "Settings":
        """Read the settings, of which those `given` go first; raises `SettingsError`."""
        chosen = {name: value for name, value in given.items() if value is not None}
        read = _Reader({**environ, **chosen})
        sam_local = read.switch("AWS_SAM_LOCAL", default=False)
        endpoint = read.value("DYNAMODB_ENDPOINT", None, _url)
        # The template names a table that sam local does not have: its containers have none of ours.
        function, alias = read.text("AWS_LAMBDA_FUNCTION_NAME"), read.text("FUNCTION_ALIAS")
        lambda_endpoint = read.value("LAMBDA_ENDPOINT", None, _url)
        table = None if sam_local and endpoint is None else read.value("TABLE_NAME", None, _table)
        return cls(
            agent=read.value("AGENT", DEFAULT_AGENT, _reference),
            agent_instructions=read.text("AGENT_INSTRUCTIONS"),
            openai_api_key=SecretText(key) if (key := read.text("OPENAI_API_KEY")) else None,
            openai_api_key_secret=read.value(
                "OPENAI_API_KEY_SECRET", None, _secret, is_shown=False
            ),
            bedrock_region=read.value("BEDROCK_REGION", None, _region),
            bedrock_endpoint=read.value("BEDROCK_ENDPOINT", None, _url),
            bedrock_guardrail=read.value("BEDROCK_GUARDRAIL", None, _guardrail),
            bedrock_prompt_caching=read.value("BEDROCK_PROMPT_CACHING", None, _switch),
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
            event_retention_minutes=int(
                read.number("EVENT_RETENTION_MINUTES", 60, 1, 1440, whole=True)
            ),
            cancellable_streams=read.switch("CANCELLABLE_STREAMS", default=False),
            commands=read.switch("COMMANDS", default=False),
            chat_sessions=read.switch("CHAT_SESSIONS", default=False),
            caller_targets=read.switch("CALLER_TARGETS", default=False),
            push_channels=read.value("PUSH_CHANNELS", (), _push_channels),
            webhooks_allow_private=read.switch("WEBHOOKS_ALLOW_PRIVATE", default=False),
            strict_reads=read.switch("STRICT_READS", default=False),
            url_streams=read.value(
                "FUNCTION_URL_MODE", True, _one_of("RESPONSE_STREAM", "BUFFERED")
            ),
            rest_api_streams=read.value("REST_API_MODE", False, _one_of("STREAM", "BUFFERED")),
            deadline_margin_s=read.number("DEADLINE_MARGIN_S", 5, 0, 60),
            load_balancer_timeout_s=read.number("LOAD_BALANCER_TIMEOUT_S", 60, 1, 4000),
            show_tools=read.switch("SHOW_TOOLS", default=False),
            log_level=read.value("LOG_LEVEL", "INFO", _log_level),
            log_sensitive=read.value("LOG_SENSITIVE", None, _switch),
            demo_delay_s=None
            if (ms := read.number("DEMO_DELAY_MS", None, 0, 60_000)) is None
            else ms / 1000,
            port=int(read.number("PORT", 8000, 0, MAX_PORT, whole=True)),
            service=read.text("POWERTOOLS_SERVICE_NAME") or "lambda-responses",
            on_lambda=function is not None,
            function=f"{function}:{alias}" if alias else function or "",
            lambda_endpoint=lambda_endpoint,
            websocket_endpoint=read.value("WEBSOCKET_ENDPOINT", None, _url),
            # Under sam local, nobody takes an asynchronous invocation.
            has_background=not sam_local or lambda_endpoint is not None,
            is_snap_start=read.text(_INITIALIZATION) == _SNAP_START,
            has_development_keys=sam_local,
        )


class RuntimeSettings(Struct, frozen=True, kw_only=True):
    """What Lambda tells a runtime by the environment (AWS's page "Defined runtime environment variables")."""

    api_address: str
    handler: str
    task_root: str | None = None
    function_name: str = ""
    function_version: str = ""
    memory_mb: int = 0
    log_group: str = ""
    log_stream: str = ""
    logs_json: bool = False
    log_level: str | None = None
    is_snap_start: bool = False
    concurrency: int = 1
    """Invocations that Lambda sends at the same time: more than one on Managed Instances only."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "RuntimeSettings":
        """Read them; raises `SettingsError` where this is not Lambda."""
        read = _Reader(environ)
        address = read.value("AWS_LAMBDA_RUNTIME_API", None, _address)
        if address is None:
            msg = "The variable AWS_LAMBDA_RUNTIME_API is not set: Lambda, or `lambda-responses url`, runs this."
            raise SettingsError(msg)
        return cls(
            api_address=address,
            handler=read.text("_HANDLER") or "handler.buffered.handler",
            task_root=read.text("LAMBDA_TASK_ROOT"),
            function_name=read.text("AWS_LAMBDA_FUNCTION_NAME") or "",
            function_version=read.text("AWS_LAMBDA_FUNCTION_VERSION") or "",
            memory_mb=int(
                read.number("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", 0, 0, 1_000_000, whole=True)
            ),
            log_group=read.text("AWS_LAMBDA_LOG_GROUP_NAME") or "",
            log_stream=read.text("AWS_LAMBDA_LOG_STREAM_NAME") or "",
            logs_json=(read.text("AWS_LAMBDA_LOG_FORMAT") or "").upper() == "JSON",
            log_level=read.value("AWS_LAMBDA_LOG_LEVEL", None, _log_level),
            is_snap_start=read.text(_INITIALIZATION) == _SNAP_START,
            concurrency=int(read.number("AWS_LAMBDA_MAX_CONCURRENCY", 1, 1, 10_000, whole=True)),
        )


def publish_trace_id(trace_id: str | None) -> None:
    """Set the variable by which X-Ray's and boto3's code of this process finds the trace."""
    if trace_id is None:
        os.environ.pop(_TRACE_ID, None)
    else:
        os.environ[_TRACE_ID] = trace_id


@contextmanager
def published_table(settings: Settings) -> Iterator[None]:
    """Name the table in the environment, where agents look for it that keep something there themselves."""
    named = {
        "TABLE_NAME": settings.table_name,
        "DYNAMODB_ENDPOINT": settings.dynamodb_endpoint,
        "AWS_REGION": settings.region,
    }
    before = {name: os.environ.get(name) for name in named}
    os.environ.update({name: value for name, value in named.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


_INITIALIZATION: Final = "AWS_LAMBDA_INITIALIZATION_TYPE"
_SNAP_START: Final = "snap-start"
_TRACE_ID: Final = "_X_AMZN_TRACE_ID"
_Default = TypeVar("_Default")
_Parsed = TypeVar("_Parsed")


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str) -> str | None:
        return self._environ.get(name, "").strip() or None

    def value(
        self,
        name: str,
        default: _Default,
        parse: Callable[[str], _Parsed],
        *,
        is_shown: bool = True,
    ) -> _Default | _Parsed:
        given = self.text(name)
        if given is None:
            return default
        try:
            return parse(given)
        except ValueError as error:
            accepted = str(error)
        shown = masked(given)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
        shown = shown if is_shown else "…"
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


def _one_of(streams: str, buffered: str) -> Callable[[str], bool]:
    """Return what reads AWS's two words for how a reply is carried."""

    def parse(given: str) -> bool:
        if given not in (streams, buffered):
            msg = f"{streams} or {buffered}"
            raise ValueError(msg)
        return given == streams

    return parse


def _reference(given: str) -> str:
    module, colon, attribute = given.partition(":")
    is_model = module in _MODEL_SCHEMES and attribute.isprintable() and " " not in attribute
    is_reference = _is_dotted_name(module) and _is_dotted_name(attribute)
    if not (colon and attribute and (is_model or is_reference)):
        msg = f"module:attribute, such as {DEFAULT_AGENT}, bedrock:<model id> or openai:<model>@<base url>"
        raise ValueError(msg)
    return given


_MODEL_SCHEMES: Final = ("bedrock", "openai", "openai-chat")


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


def _secret(given: str) -> str:
    if not _SECRET.fullmatch(given):
        msg = "the ARN or the name of a secret in Secrets Manager"
        raise ValueError(msg)
    return given


_SECRET: Final = re.compile(r"(arn:[\w-]+:secretsmanager:[\w-]+:\d{12}:secret:)?[\w/+=.@-]{1,512}")


def _url(given: str) -> str:
    parts = _URL.fullmatch(given)
    if parts is None or int(parts["port"] or 0) > MAX_PORT:
        msg = "an http or https URL"
        raise ValueError(msg)
    return given


def _address(given: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+:[0-9]{1,5}", given):
        msg = "host:port"
        raise ValueError(msg)
    return given


def _region(given: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,40}", given):
        msg = "the name of an AWS region, such as eu-central-1"
        raise ValueError(msg)
    return given


def _guardrail(given: str) -> tuple[str, str]:
    parts = re.fullmatch(r"([A-Za-z0-9:/_-]{1,2048}):(DRAFT|[0-9]{1,8})", given)
    if parts is None:
        msg = "the id or the ARN of a guardrail and its version, such as abcdef123456:1"
        raise ValueError(msg)
    return parts[1], parts[2]


def _options(given: str) -> frozenset[str]:
    names = frozenset(_split(given))
    if names - OPTION_NAMES:
        msg = f"a comma-separated list of {', '.join(sorted(OPTION_NAMES))}"
        raise ValueError(msg)
    return names


def _push_channels(given: str) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for entry in _split(given):
        kind, _, place = entry.partition(":")
        if kind in found or not _PUSH_CHANNEL.fullmatch(entry):
            msg = (
                "a comma-separated list of webhook, eventbridge:<bus name or ARN> and "
                "sns:<topic ARN>, each at most once"
            )
            raise ValueError(msg)
        found[kind] = place
    return tuple(found.items())


_PUSH_CHANNEL: Final = re.compile(
    r"webhook"
    r"|eventbridge:(arn:[\w-]+:events:[\w-]+:\d{12}:event-bus/)?[A-Za-z0-9/._-]{1,256}"
    r"|sns:arn:[\w-]+:sns:[\w-]+:\d{12}:[A-Za-z0-9_-]{1,256}(\.fifo)?"
)


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
    # Lambda has words of its own.
    level = {"WARN": "WARNING", "TRACE": "DEBUG", "FATAL": "CRITICAL"}.get(
        given.upper(), given.upper()
    )
    if level not in LOG_LEVELS:
        msg = f"one of {', '.join(LOG_LEVELS)}"
        raise ValueError(msg)
    return level
