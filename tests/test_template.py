"""The SAM template: valid, and what it grants, keeps and hands out."""

import os
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import pytest
from cfnlint.api import ManualArgs, lint_file
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

from channel.responses.operations import QUEUE_S
from infra.settings import Settings


PATH = Path(__file__).parent.parent / "template.yaml"


@cache
def template() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml_parse(PATH.read_text())
    return parsed


@cache
def resources() -> dict[str, Any]:
    """Return what CloudFormation gets: the resources after the SAM transform."""
    parsed = yaml_parse(PATH.read_text())
    parsed["Resources"]["ResponsesFunction"]["Properties"]["CodeUri"] = "s3://bucket/key"
    translator = Translator({}, Parser(), boto_session=boto3.Session(region_name="us-east-1"))
    found: dict[str, Any] = translator.translate(parsed, {})["Resources"]
    return found


def test_the_linter_finds_nothing() -> None:
    assert lint_file(PATH, config=ManualArgs(regions=["us-east-1"])) == []


def test_it_becomes_these_resources() -> None:
    kinds = Counter(each["Type"] for each in resources().values() if "Condition" not in each)

    assert kinds == {
        "AWS::ApiGatewayV2::Api": 1,
        "AWS::ApiGatewayV2::Stage": 1,
        "AWS::DynamoDB::Table": 1,
        "AWS::IAM::Policy": 1,
        "AWS::IAM::Role": 1,
        "AWS::Lambda::Alias": 1,
        "AWS::Lambda::EventInvokeConfig": 1,
        "AWS::Lambda::Function": 1,
        "AWS::Lambda::Permission": 3,
        "AWS::Lambda::Url": 1,
        "AWS::Lambda::Version": 1,
        "AWS::Logs::LogGroup": 1,
        "AWS::SQS::Queue": 1,
    }


def made_where(condition: str) -> list[str]:
    """Return the types of the resources that are made under a condition."""
    return sorted(
        each["Type"] for each in resources().values() if each.get("Condition") == condition
    )


def test_the_rest_api_is_made_only_where_it_is_wanted() -> None:
    assert made_where("HasRestApi") == [
        "AWS::ApiGateway::Deployment",
        "AWS::ApiGateway::Method",
        "AWS::ApiGateway::Resource",
        "AWS::ApiGateway::RestApi",
        "AWS::ApiGateway::Stage",
        "AWS::Lambda::Permission",
    ]
    assert template()["Parameters"]["RestApi"]["Default"] == "off"


def test_the_websocket_api_is_made_only_where_it_is_wanted() -> None:
    assert made_where("HasWebSocket") == [
        "AWS::ApiGatewayV2::Api",
        "AWS::ApiGatewayV2::Deployment",
        "AWS::ApiGatewayV2::Integration",
        "AWS::ApiGatewayV2::Route",
        "AWS::ApiGatewayV2::Route",
        "AWS::ApiGatewayV2::Route",
        "AWS::ApiGatewayV2::Stage",
        "AWS::IAM::Policy",
        "AWS::Lambda::Permission",
    ]
    assert template()["Parameters"]["WebSocket"]["Default"] == "off"


def test_the_function_manages_the_connections_of_its_own_websocket_api_only() -> None:
    (statement,) = resources()["WebSocketPolicy"]["Properties"]["PolicyDocument"]["Statement"]

    assert statement["Action"] == "execute-api:ManageConnections"
    for resource in statement["Resource"]:
        assert "${WebSocketApi}/responses/" in resource["Fn::Sub"]


def test_the_function_url_streams_from_the_alias() -> None:
    url = resources()["ResponsesFunctionUrl"]["Properties"]

    assert url == {
        "AuthType": "NONE",
        "InvokeMode": "RESPONSE_STREAM",
        "TargetFunctionArn": {"Ref": "ResponsesFunctionAliaslive"},
    }


def test_the_public_url_has_both_permissions_that_it_needs() -> None:
    public = [
        each["Properties"]
        for each in resources().values()
        if each["Type"] == "AWS::Lambda::Permission" and each["Properties"]["Principal"] == "*"
    ]

    alias = {"Ref": "ResponsesFunctionAliaslive"}
    assert public == [
        {
            "Action": "lambda:InvokeFunctionUrl",
            "FunctionName": alias,
            "FunctionUrlAuthType": "NONE",
            "Principal": "*",
        },
        {
            "Action": "lambda:InvokeFunction",
            "FunctionName": alias,
            "InvokedViaFunctionUrl": True,
            "Principal": "*",
        },
    ]


def test_the_function_runs_the_loop_that_the_zip_brings() -> None:
    variables = resources()["ResponsesFunction"]["Properties"]["Environment"]["Variables"]
    wrapper = PATH.parent / variables["AWS_LAMBDA_EXEC_WRAPPER"].removeprefix("/var/task/")

    assert os.access(wrapper, os.X_OK)
    assert wrapper.read_text().startswith("#!/bin/sh\n")


def test_snapstart_is_of_published_versions_and_can_be_turned_off() -> None:
    function = resources()["ResponsesFunction"]["Properties"]

    assert function["SnapStart"] == {
        "ApplyOn": {"Fn::If": ["HasSnapStart", "PublishedVersions", "None"]}
    }


def test_the_role_reaches_this_table_its_queue_and_its_log_group_only() -> None:
    (policy,) = resources()["Role"]["Properties"]["Policies"]
    granted = [
        (statement["Action"], statement["Resource"])
        for statement in policy["PolicyDocument"]["Statement"]
        if statement["Effect"] == "Allow"
    ]

    calls = ["DeleteItem", "GetItem", "PutItem", "Query", "UpdateItem"]
    assert granted == [
        ([f"dynamodb:{call}" for call in calls], {"Fn::GetAtt": ["Table", "Arn"]}),
        ("sqs:SendMessage", {"Fn::GetAtt": ["FailedJobs", "Arn"]}),
        (["logs:CreateLogStream", "logs:PutLogEvents"], {"Fn::GetAtt": ["Logs", "Arn"]}),
    ]


def test_the_function_may_invoke_itself_by_its_alias_only() -> None:
    policy = resources()["JobsPolicy"]["Properties"]
    (statement,) = policy["PolicyDocument"]["Statement"]

    assert policy["Roles"] == [{"Ref": "Role"}]
    assert statement["Action"] == "lambda:InvokeFunction"
    assert statement["Resource"] == {"Fn::Sub": "${ResponsesFunction.Arn}:live"}


def test_the_role_reaches_models_only_where_the_agent_is_one() -> None:
    policy = resources()["BedrockPolicy"]
    (statement,) = policy["Properties"]["PolicyDocument"]["Statement"]

    assert made_where("IsBedrock") == ["AWS::IAM::Policy"]
    assert policy["Properties"]["Roles"] == [{"Ref": "Role"}]
    assert statement["Action"] == [
        f"bedrock:{call}"
        for call in ("CountTokens", "InvokeModel", "InvokeModelWithResponseStream")
    ]
    kinds = [each["Fn::Sub"].rpartition(":")[2] for each in statement["Resource"]]
    assert kinds == [
        "foundation-model/*",
        "inference-profile/*",
        "application-inference-profile/*",
        "provisioned-model/*",
        "custom-model-deployment/*",
    ]
    # Inference profiles reach into other regions; what is of an account is of this one.
    assert all("bedrock:*:" in each["Fn::Sub"] for each in statement["Resource"])
    assert all("${AWS::AccountId}" in each["Fn::Sub"] for each in statement["Resource"][1:])


def test_the_role_reaches_guardrails_only_where_a_model_has_one() -> None:
    (statement,) = resources()["BedrockGuardrailPolicy"]["Properties"]["PolicyDocument"][
        "Statement"
    ]

    assert made_where("HasBedrockGuardrail") == ["AWS::IAM::Policy"]
    assert statement["Action"] == "bedrock:ApplyGuardrail"
    assert template()["Conditions"]["HasBedrockGuardrail"]["Fn::And"][0] == {
        "Condition": "IsBedrock"
    }
    assert template()["Parameters"]["BedrockGuardrail"]["Default"] == ""


def test_the_role_reads_the_secret_of_an_upstreams_key_only_where_there_is_one() -> None:
    policy = resources()["OpenAIApiKeyPolicy"]["Properties"]
    (statement,) = policy["PolicyDocument"]["Statement"]

    assert made_where("HasOpenAIApiKeySecret") == ["AWS::IAM::Policy"]
    assert policy["Roles"] == [{"Ref": "Role"}]
    assert statement["Action"] == "secretsmanager:GetSecretValue"
    assert statement["Resource"] == {"Ref": "OpenAIApiKeySecret"}
    assert template()["Parameters"]["OpenAIApiKeySecret"]["Default"] == ""


def policy_where(condition: str, name: str) -> dict[str, Any]:
    """Return the one statement of the one policy that is made under a condition."""
    policy = resources()[name]["Properties"]
    assert made_where(condition) == ["AWS::IAM::Policy"]
    assert policy["Roles"] == [{"Ref": "Role"}]
    (statement,) = policy["PolicyDocument"]["Statement"]
    found: dict[str, Any] = statement
    return found


def test_the_role_reaches_a_bus_or_a_topic_only_where_one_is_named() -> None:
    bus = policy_where("HasEventBus", "EventBusPolicy")
    topic = policy_where("HasTopic", "TopicPolicy")

    assert (bus["Action"], bus["Resource"]) == ("events:PutEvents", {"Ref": "EventBusArn"})
    assert (topic["Action"], topic["Resource"]) == ("sns:Publish", {"Ref": "TopicArn"})
    for name, default in {"WebhookPush": "off", "EventBusArn": "", "TopicArn": ""}.items():
        assert template()["Parameters"][name]["Default"] == default


BUS = "arn:aws:events:eu-west-1:123456789012:event-bus/replies"
TOPIC = "arn:aws-cn:sns:cn-north-1:123456789012:replies.fifo"


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (set(), ()),
        ({"HasWebhookPush"}, (("webhook", ""),)),
        ({"HasTopic"}, (("sns", TOPIC),)),
        (
            {"HasWebhookPush", "HasEventBus", "HasTopic"},
            (("webhook", ""), ("eventbridge", BUS), ("sns", TOPIC)),
        ),
    ],
)
def test_the_parameters_become_the_push_channels(
    chosen: set[str], expected: tuple[tuple[str, str], ...]
) -> None:
    function = template()["Resources"]["ResponsesFunction"]["Properties"]
    separator, parts = function["Environment"]["Variables"]["PUSH_CHANNELS"]["Fn::Join"]
    values = []
    for condition, then, otherwise in (part["Fn::If"] for part in parts):
        value = then if condition in chosen else otherwise
        values.append(value["Fn::Sub"] if isinstance(value, dict) else value)
    joined = separator.join(values).replace("${EventBusArn}", BUS).replace("${TopicArn}", TOPIC)

    assert Settings.from_env({"PUSH_CHANNELS": joined}).push_channels == expected


@pytest.mark.parametrize("name", ["EventBusArn", "TopicArn"])
def test_what_replies_may_go_to_is_one_whole_arn(name: str) -> None:
    pattern = template()["Parameters"][name]["AllowedPattern"]
    arn = {"EventBusArn": BUS, "TopicArn": TOPIC}[name]

    assert re.match(pattern, "")
    assert re.match(pattern, arn)
    for bad in (f"{arn},webhook", f"{arn}*", arn.rpartition(":")[2], f"{arn} "):
        assert not re.match(pattern, bad)


@pytest.mark.parametrize(
    ("secret", "is_allowed"),
    [
        ("", True),
        ("arn:aws:secretsmanager:eu-west-1:123456789012:secret:openai/key-AbCdEf", True),
        ("arn:aws:secretsmanager:eu-west-1:123456789012:secret:*", False),
        ("arn:aws:secretsmanager:eu-west-1:123456789012:secret:openai/key-*", False),
        ("sk-the-key-itself", False),
    ],
)
def test_the_secret_of_an_upstreams_key_is_one_whole_arn(secret: str, is_allowed: bool) -> None:
    pattern = template()["Parameters"]["OpenAIApiKeySecret"]["AllowedPattern"]

    assert bool(re.match(pattern, secret)) is is_allowed
    if is_allowed:
        settings = Settings.from_env({"OPENAI_API_KEY_SECRET": secret})
        assert (settings.openai_api_key_secret or "") == secret


@pytest.mark.parametrize(
    ("agent", "is_allowed"),
    [
        ("agent.support:agent", True),
        ("bedrock:us.anthropic.claude-sonnet-4-5-20250929-v1:0", True),
        ("bedrock:arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.a.b-v1:0", True),
        ("openai:llama3@http://127.0.0.1:11434/v1", True),
        ("bedrock:", False),
        ("bedrock:a b", False),
        ("my-agent:agent", False),
    ],
)
def test_the_agent_may_be_an_attribute_or_a_model(agent: str, is_allowed: bool) -> None:
    pattern = template()["Parameters"]["Agent"]["AllowedPattern"]

    assert bool(re.match(pattern, agent)) is is_allowed
    if is_allowed:
        assert Settings.from_env({"AGENT": agent}).agent == agent


@pytest.mark.parametrize(
    "guardrail", ["", "abc123:1", "arn:aws:bedrock:eu-west-1:123456789012:guardrail/abc123:DRAFT"]
)
def test_a_guardrail_of_the_template_is_a_good_setting(guardrail: str) -> None:
    assert re.match(template()["Parameters"]["BedrockGuardrail"]["AllowedPattern"], guardrail)
    found = Settings.from_env({"BEDROCK_GUARDRAIL": guardrail}).bedrock_guardrail
    assert ":".join(found or ()) == guardrail


def test_a_job_is_tried_again_and_kept_where_it_fails_while_its_turn_still_waits_for_it() -> None:
    config = resources()["ResponsesFunctionEventInvokeConfig"]["Properties"]

    assert config["MaximumRetryAttempts"] == 2
    assert config["MaximumEventAgeInSeconds"] < QUEUE_S
    assert config["DestinationConfig"] == {
        "OnFailure": {"Destination": {"Fn::GetAtt": ["FailedJobs", "Arn"]}}
    }
    assert config["Qualifier"] == "live"


def test_the_role_that_an_agent_shares_cannot_make_keys() -> None:
    (policy,) = resources()["Role"]["Properties"]["Policies"]
    (denied,) = [
        statement
        for statement in policy["PolicyDocument"]["Statement"]
        if statement["Effect"] == "Deny"
    ]

    assert denied["Action"] == [f"dynamodb:{call}Item" for call in ("Delete", "Put", "Update")]
    assert denied["Condition"] == {
        "ForAnyValue:StringLike": {
            "dynamodb:LeadingKeys": ["key#*", "cfg#keys", "hook#*", "cfg#hooks"]
        }
    }


def test_the_table_expires_rows_restores_and_outlives_the_stack() -> None:
    table = resources()["Table"]
    properties = table["Properties"]

    assert (table["DeletionPolicy"], table["UpdateReplacePolicy"]) == ("Retain", "Retain")
    assert properties["TimeToLiveSpecification"] == {"AttributeName": "ttl", "Enabled": True}
    assert properties["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"]
    assert properties["SSESpecification"]["SSEEnabled"]
    assert [key["AttributeName"] for key in properties["KeySchema"]] == ["pk", "sk"]


def test_the_defaults_of_the_parameters_are_good_settings() -> None:
    variables = template()["Resources"]["ResponsesFunction"]["Properties"]["Environment"][
        "Variables"
    ]
    defaults = {
        name: str(template()["Parameters"].get(value["Ref"], {}).get("Default", "table"))
        for name, value in variables.items()
        if isinstance(value, dict) and "Ref" in value
    }

    settings = Settings.from_env({"AWS_LAMBDA_FUNCTION_NAME": "f", **defaults})

    assert settings == Settings(on_lambda=True, function="f", table_name="table")


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARN", "ERROR"])
def test_every_log_level_of_the_template_is_a_good_setting(level: str) -> None:
    assert level in template()["Parameters"]["LogLevel"]["AllowedValues"]
    assert Settings.from_env({"LOG_LEVEL": level}).log_level.startswith(level)
