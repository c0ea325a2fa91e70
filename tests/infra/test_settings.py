"""Every setting: what it becomes, and the one sentence that a bad value gets."""

import inspect
import os
import re
from typing import Any

import pytest
from msgspec.structs import replace

from channel.agent import OPTION_NAMES
from infra.settings import (
    LOCAL_TABLE,
    RuntimeSettings,
    Settings,
    SettingsError,
    publish_trace_id,
)


SECRET_ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:openai/key-AbCdEf"
BUS_ARN = "arn:aws:events:eu-west-1:123456789012:event-bus/replies"
TOPIC_ARN = "arn:aws:sns:eu-west-1:123456789012:replies.fifo"
PUSH_CHANNELS = (
    "a comma-separated list of webhook, eventbridge:<bus name or ARN> and sns:<topic ARN>, "
    "each at most once"
)
BAD_PUSH_CHANNELS = (
    "email",
    "webhook:we_1",
    "webhook,webhook",
    "eventbridge",
    "eventbridge:a,eventbridge:b",
    "eventbridge:arn:aws:sqs:eu-west-1:123456789012:replies",
    "sns:replies",
    "sns:arn:aws:sns:eu-west-1:123456789012:replies.txt",
)


@pytest.mark.parametrize(
    ("name", "given", "field", "expected"),
    [
        ("AGENT", "agent.support:make.agent", "agent", "agent.support:make.agent"),
        ("AGENT", "openai:qwen3:8b@http://h:1/v1", "agent", "openai:qwen3:8b@http://h:1/v1"),
        ("AGENT_INSTRUCTIONS", "Be kind.", "agent_instructions", "Be kind."),
        ("OPENAI_API_KEY", "sk-1", "openai_api_key", "sk-1"),
        ("OPENAI_API_KEY_SECRET", "openai/key", "openai_api_key_secret", "openai/key"),
        ("OPENAI_API_KEY_SECRET", SECRET_ARN, "openai_api_key_secret", SECRET_ARN),
        ("BEDROCK_REGION", "us-west-2", "bedrock_region", "us-west-2"),
        (
            "BEDROCK_ENDPOINT",
            "http://127.0.0.1:8002",
            "bedrock_endpoint",
            "http://127.0.0.1:8002",
        ),
        ("BEDROCK_GUARDRAIL", "abc123:DRAFT", "bedrock_guardrail", ("abc123", "DRAFT")),
        (
            "BEDROCK_GUARDRAIL",
            "arn:aws:bedrock:eu-west-1:123456789012:guardrail/abc123:7",
            "bedrock_guardrail",
            ("arn:aws:bedrock:eu-west-1:123456789012:guardrail/abc123", "7"),
        ),
        ("BEDROCK_PROMPT_CACHING", "0", "bedrock_prompt_caching", False),
        ("BEDROCK_PROMPT_CACHING", "on", "bedrock_prompt_caching", True),
        ("MODEL_NAME", "support-v2", "model_name", "support-v2"),
        ("TABLE_NAME", "history-prod.1", "table_name", "history-prod.1"),
        (
            "DYNAMODB_ENDPOINT",
            "http://127.0.0.1:8001",
            "dynamodb_endpoint",
            "http://127.0.0.1:8001",
        ),
        ("AWS_REGION", "eu-west-1", "region", "eu-west-1"),
        ("AWS_DEFAULT_REGION", "eu-west-1", "region", "eu-west-1"),
        (
            "CALLER_OPTIONS",
            "temperature, top_p,",
            "caller_options",
            frozenset({"temperature", "top_p"}),
        ),
        ("CORS_ORIGINS", "*", "cors_origins", ("*",)),
        (
            "CORS_ORIGINS",
            "https://a.example,http://localhost:3000",
            "cors_origins",
            ("https://a.example", "http://localhost:3000"),
        ),
        ("KEEPALIVE_S", "0", "keepalive_s", 0.0),
        ("KEEPALIVE_S", "7.5", "keepalive_s", 7.5),
        ("FIRST_EVENT_GRACE_S", "0.5", "first_event_grace_s", 0.5),
        ("RETENTION_DAYS", "365", "retention_days", 365),
        ("CHAT_SESSIONS", "on", "chat_sessions", True),
        ("CALLER_TARGETS", "on", "caller_targets", True),
        ("PUSH_CHANNELS", ",,", "push_channels", ()),
        (
            "PUSH_CHANNELS",
            f"webhook, eventbridge:{BUS_ARN}, sns:{TOPIC_ARN}",
            "push_channels",
            (("webhook", ""), ("eventbridge", BUS_ARN), ("sns", TOPIC_ARN)),
        ),
        ("PUSH_CHANNELS", "eventbridge:my.bus", "push_channels", (("eventbridge", "my.bus"),)),
        ("COMMANDS", "on", "commands", True),
        ("STRICT_READS", "true", "strict_reads", True),
        ("FUNCTION_URL_MODE", "RESPONSE_STREAM", "url_streams", True),
        ("FUNCTION_URL_MODE", "BUFFERED", "url_streams", False),
        ("REST_API_MODE", "STREAM", "rest_api_streams", True),
        ("REST_API_MODE", "BUFFERED", "rest_api_streams", False),
        ("DEADLINE_MARGIN_S", "2.5", "deadline_margin_s", 2.5),
        ("LOAD_BALANCER_TIMEOUT_S", "4000", "load_balancer_timeout_s", 4000.0),
        ("SHOW_TOOLS", "on", "show_tools", True),
        ("LOG_LEVEL", "debug", "log_level", "DEBUG"),
        ("LOG_LEVEL", "WARN", "log_level", "WARNING"),
        ("LOG_SENSITIVE", "1", "log_sensitive", True),
        ("LOG_SENSITIVE", "off", "log_sensitive", False),
        ("DEMO_DELAY_MS", "50", "demo_delay_s", 0.05),
        ("PORT", "0", "port", 0),
        ("POWERTOOLS_SERVICE_NAME", "support", "service", "support"),
        ("AWS_LAMBDA_FUNCTION_NAME", "f", "on_lambda", True),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start", "is_snap_start", True),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand", "is_snap_start", False),
        ("AWS_SAM_LOCAL", "true", "has_development_keys", True),
    ],
)
def test_a_setting_is_read(name: str, given: str, field: str, expected: object) -> None:
    settings = Settings.from_env({name: f" {given} "})

    assert getattr(settings, field) == expected


def test_nothing_set_is_the_default() -> None:
    assert Settings.from_env({}) == Settings()
    assert Settings.from_env({"AGENT": "", "PORT": " ", "UNKNOWN": "x"}) == Settings()


@pytest.mark.parametrize(
    ("name", "given", "accepted"),
    [
        (
            "AGENT",
            "my_agent",
            "module:attribute, such as channel.agents.demo:agent, bedrock:<model id> or openai:<model>@<base url>",
        ),
        (
            "AGENT",
            "my-agent:agent",
            "module:attribute, such as channel.agents.demo:agent, bedrock:<model id> or openai:<model>@<base url>",
        ),
        ("BEDROCK_REGION", "not a region", "the name of an AWS region, such as eu-central-1"),
        ("BEDROCK_ENDPOINT", "localhost", "an http or https URL"),
        (
            "BEDROCK_GUARDRAIL",
            "abc123",
            "the id or the ARN of a guardrail and its version, such as abcdef123456:1",
        ),
        (
            "BEDROCK_GUARDRAIL",
            "abc123:latest",
            "the id or the ARN of a guardrail and its version, such as abcdef123456:1",
        ),
        ("BEDROCK_PROMPT_CACHING", "5m", "1 or 0 (or true, yes, on, false, no, off)"),
        ("MODEL_NAME", "a b", "one printable word"),
        ("MODEL_NAME", "a\x7fb", "one printable word"),
        (
            "TABLE_NAME",
            "my table",
            "a DynamoDB table name (3 to 255 letters, digits, dots, dashes and underscores)",
        ),
        (
            "TABLE_NAME",
            "t",
            "a DynamoDB table name (3 to 255 letters, digits, dots, dashes and underscores)",
        ),
        ("DYNAMODB_ENDPOINT", "127.0.0.1:8001", "an http or https URL"),
        ("DYNAMODB_ENDPOINT", "http://", "an http or https URL"),
        (
            "CALLER_OPTIONS",
            "temperature,model",
            f"a comma-separated list of {', '.join(sorted(OPTION_NAMES))}",
        ),
        (
            "CORS_ORIGINS",
            "app.example.com",
            "a comma-separated list of origins, such as https://app.example.com, or *",
        ),
        (
            "CORS_ORIGINS",
            "https://a.example/app",
            "a comma-separated list of origins, such as https://app.example.com, or *",
        ),
        (
            "CORS_ORIGINS",
            "*,https://a.example",
            "a comma-separated list of origins, such as https://app.example.com, or *",
        ),
        ("CALLER_TARGETS", "?", "1 or 0 (or true, yes, on, false, no, off)"),
        *[("PUSH_CHANNELS", given, PUSH_CHANNELS) for given in BAD_PUSH_CHANNELS],
        ("KEEPALIVE_S", "soon", "a number from 0 to 3600"),
        ("KEEPALIVE_S", "-1", "a number from 0 to 3600"),
        ("KEEPALIVE_S", "nan", "a number from 0 to 3600"),
        ("FIRST_EVENT_GRACE_S", "1000", "a number from 0 to 900"),
        ("RETENTION_DAYS", "1.5", "a whole number from 1 to 36500"),
        ("RETENTION_DAYS", "0", "a whole number from 1 to 36500"),
        ("STRICT_READS", "maybe", "1 or 0 (or true, yes, on, false, no, off)"),
        ("FUNCTION_URL_MODE", "STREAM", "RESPONSE_STREAM or BUFFERED"),
        ("FUNCTION_URL_MODE", "buffered", "RESPONSE_STREAM or BUFFERED"),
        ("REST_API_MODE", "RESPONSE_STREAM", "STREAM or BUFFERED"),
        ("DEADLINE_MARGIN_S", "61", "a number from 0 to 60"),
        ("LOAD_BALANCER_TIMEOUT_S", "0", "a number from 1 to 4000"),
        ("SHOW_TOOLS", "2", "1 or 0 (or true, yes, on, false, no, off)"),
        ("LOG_LEVEL", "loud", "one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
        ("LOG_SENSITIVE", "?", "1 or 0 (or true, yes, on, false, no, off)"),
        ("DEMO_DELAY_MS", "-1", "a number from 0 to 60000"),
        ("PORT", "65536", "a whole number from 0 to 65535"),
        ("PORT", "8_000", "a whole number from 0 to 65535"),
        ("AWS_SAM_LOCAL", "perhaps", "1 or 0 (or true, yes, on, false, no, off)"),
    ],
)
def test_a_bad_value_is_one_sentence(name: str, given: str, accepted: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_env({name: given})

    assert str(raised.value) == f"The setting {name} is {given!r}, but it must be {accepted}."


def test_the_key_of_an_upstream_is_not_shown_with_the_settings() -> None:
    settings = Settings.from_env({"OPENAI_API_KEY": "sk-very-secret"})

    assert "very-secret" not in f"{settings!r} {settings}"


@pytest.mark.parametrize("given", ['{"key": "sk-very-secret"}', "arn:aws:s3:::sk-very-secret"])
def test_what_is_no_name_of_a_secret_may_be_one_and_is_not_shown(given: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_env({"OPENAI_API_KEY_SECRET": given})

    assert str(raised.value) == (
        "The setting OPENAI_API_KEY_SECRET is '…', but it must be the ARN or the name of a secret in "
        "Secrets Manager."
    )


def test_what_is_given_goes_before_the_environment() -> None:
    settings = Settings.from_env({"PORT": "9000", "AGENT": "a:b"}, PORT="9001", AGENT=None)

    assert (settings.port, settings.agent) == (9001, "a:b")


def test_a_long_bad_value_is_shown_by_its_beginning() -> None:
    with pytest.raises(SettingsError, match=r"^The setting PORT is '9{80}…', but it must be"):
        Settings.from_env({"PORT": "9" * 5000})


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"AWS_LAMBDA_FUNCTION_NAME": "f"}, {"on_lambda": True, "function": "f"}),
        (
            {"AWS_LAMBDA_FUNCTION_NAME": "f", "FUNCTION_ALIAS": "live"},
            {"on_lambda": True, "function": "f:live"},
        ),
        (
            {"AWS_LAMBDA_FUNCTION_NAME": "f", "TABLE_NAME": "table"},
            {"on_lambda": True, "function": "f", "table_name": "table"},
        ),
        (
            {"AWS_LAMBDA_FUNCTION_NAME": "f", "TABLE_NAME": "table", "AWS_SAM_LOCAL": "true"},
            {
                "on_lambda": True,
                "function": "f",
                "has_development_keys": True,
                "has_background": False,
            },
        ),
        (
            {"AWS_SAM_LOCAL": "true", "LAMBDA_ENDPOINT": "http://h:2"},
            {"has_development_keys": True, "lambda_endpoint": "http://h:2"},
        ),
        (
            {"TABLE_NAME": "table", "AWS_SAM_LOCAL": "true", "DYNAMODB_ENDPOINT": "http://h:1"},
            {
                "table_name": "table",
                "has_development_keys": True,
                "dynamodb_endpoint": "http://h:1",
                "has_background": False,
            },
        ),
        (
            {"DYNAMODB_ENDPOINT": "http://h:1"},
            {"table_name": LOCAL_TABLE, "dynamodb_endpoint": "http://h:1"},
        ),
    ],
)
def test_where_it_runs_decides_on_the_table_and_the_keys(
    environ: dict[str, str], expected: dict[str, Any]
) -> None:
    assert Settings.from_env(environ) == replace(Settings(), **expected)


def test_the_table_in_the_docstring_names_exactly_the_settings_that_are_read() -> None:
    source = inspect.getsource(Settings.from_env)
    read = set(re.findall(r'read\.\w+\(\s*"([A-Z_]+)"', source))

    documented = re.findall(r"^ *([A-Z_]{4,})  ", Settings.__doc__ or "", re.MULTILINE)
    assert {*documented, "AWS_DEFAULT_REGION"} == read


@pytest.mark.parametrize("given", ["http://[::", "http://a:b", "http://a:99999", "http://é", "a b"])
def test_an_endpoint_that_no_client_takes_is_refused_at_the_start(given: str) -> None:
    with pytest.raises(
        SettingsError, match=r"The setting DYNAMODB_ENDPOINT is .*an http or https URL"
    ):
        Settings.from_env({"DYNAMODB_ENDPOINT": given})


@pytest.mark.parametrize(
    "given", ["http://127.0.0.1:8001", "https://x.example/p?q", "http://[::1]:80/"]
)
def test_an_endpoint_may_be_any_url(given: str) -> None:
    assert Settings.from_env({"DYNAMODB_ENDPOINT": given}).dynamodb_endpoint == given


@pytest.mark.parametrize(
    "name",
    ["BEDROCK_ENDPOINT", "DYNAMODB_ENDPOINT", "LAMBDA_ENDPOINT", "WEBSOCKET_ENDPOINT"],
)
@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("http://user:SECRET@h", "http://…@h"),
        ("http://user:SEC/RET@h", "http://…@h"),
        ("user:SECRET@h:80", "…@h:80"),
        ("ftp://h/?key=SECRET", "ftp://h/?…"),
    ],
)
def test_what_may_be_a_secret_in_a_url_is_not_shown(name: str, given: str, shown: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_env({name: given})

    assert (
        str(raised.value)
        == f"The setting {name} is {shown!r}, but it must be an http or https URL."
    )


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("openai:m@https://user:SECRET@h /v1", "openai:m@https://…@h /v1"),
        ("openai:m@user:SECRET@h /v1", "openai:m@…@h /v1"),
        ("https://user:SECRET@h/v1", "https://…@h/v1"),
        ("openai:m@https://h/v1 ?key=SECRET", "openai:m@https://h/v1 ?…"),
    ],
)
def test_what_may_be_a_secret_in_a_reference_is_not_shown(given: str, shown: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_env({"AGENT": given})

    assert str(raised.value).startswith(f"The setting AGENT is {shown!r}, but ")


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_a_region_is_a_name(name: str) -> None:
    with pytest.raises(SettingsError, match=f"The setting {name} is 'not a region'"):
        Settings.from_env({name: "not a region"})


# --- what Lambda tells a runtime -----------------------------------------------------------------

LAMBDA = {
    "AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9001",
    "_HANDLER": "app.handler",
    "LAMBDA_TASK_ROOT": "/var/task",
    "AWS_LAMBDA_FUNCTION_NAME": "f",
    "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
    "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/f",
    "AWS_LAMBDA_LOG_STREAM_NAME": "2026/11/25/[$LATEST]abc",
    "AWS_LAMBDA_LOG_FORMAT": "JSON",
    "AWS_LAMBDA_LOG_LEVEL": "WARN",
    "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start",
    "AWS_LAMBDA_MAX_CONCURRENCY": "64",
}


def test_all_that_lambda_tells_a_runtime_is_read() -> None:
    assert RuntimeSettings.from_env(LAMBDA) == RuntimeSettings(
        api_address="127.0.0.1:9001",
        handler="app.handler",
        task_root="/var/task",
        function_name="f",
        function_version="$LATEST",
        memory_mb=512,
        log_group="/aws/lambda/f",
        log_stream="2026/11/25/[$LATEST]abc",
        logs_json=True,
        log_level="WARNING",
        is_snap_start=True,
        concurrency=64,
    )


def test_a_runtime_needs_no_more_than_its_api() -> None:
    settings = RuntimeSettings.from_env({"AWS_LAMBDA_RUNTIME_API": "localhost:80"})

    assert settings == RuntimeSettings(
        api_address="localhost:80", handler="handler.buffered.handler"
    )


@pytest.mark.parametrize(
    ("name", "given", "field", "expected"),
    [
        ("AWS_LAMBDA_LOG_FORMAT", "Text", "logs_json", False),
        ("AWS_LAMBDA_LOG_LEVEL", "TRACE", "log_level", "DEBUG"),
        ("AWS_LAMBDA_LOG_LEVEL", "FATAL", "log_level", "CRITICAL"),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand", "is_snap_start", False),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "lambda-managed-instances", "is_snap_start", False),
        ("AWS_LAMBDA_MAX_CONCURRENCY", "1", "concurrency", 1),
        ("AWS_LAMBDA_MAX_CONCURRENCY", "", "concurrency", 1),
    ],
)
def test_lambdas_words_are_read(name: str, given: str, field: str, expected: object) -> None:
    assert getattr(RuntimeSettings.from_env({**LAMBDA, name: given}), field) == expected


@pytest.mark.parametrize(
    ("name", "given", "accepted"),
    [
        ("AWS_LAMBDA_RUNTIME_API", "127.0.0.1", "host:port"),
        ("AWS_LAMBDA_RUNTIME_API", "http://127.0.0.1:9001", "host:port"),
        ("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:port", "host:port"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "much", "a whole number from 0 to 1000000"),
        ("AWS_LAMBDA_MAX_CONCURRENCY", "0", "a whole number from 1 to 10000"),
        ("AWS_LAMBDA_LOG_LEVEL", "loud", "one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
    ],
)
def test_what_lambda_never_says_is_one_sentence(name: str, given: str, accepted: str) -> None:
    with pytest.raises(SettingsError) as raised:
        RuntimeSettings.from_env({**LAMBDA, name: given})

    assert str(raised.value) == f"The setting {name} is {given!r}, but it must be {accepted}."


@pytest.mark.parametrize("environ", [{}, {"AWS_LAMBDA_RUNTIME_API": " "}])
def test_outside_of_lambda_there_is_no_runtime(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as raised:
        RuntimeSettings.from_env(environ)

    assert str(raised.value) == (
        "The variable AWS_LAMBDA_RUNTIME_API is not set: Lambda, or `lambda-responses url`, runs this."
    )


def test_a_trace_is_published_to_the_process_and_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("_X_AMZN_TRACE_ID", "Root=1-old")
    seen = []

    for given in ("Root=1-a;Sampled=1", None, None):
        publish_trace_id(given)
        seen.append(os.getenv("_X_AMZN_TRACE_ID"))

    assert seen == ["Root=1-a;Sampled=1", None, None]
