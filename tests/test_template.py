"""The SAM template: valid, and what it grants, keeps and hands out."""

from functools import cache
from pathlib import Path
from typing import Any

import boto3
import pytest
from cfnlint.api import ManualArgs, lint_file
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

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
    kinds = sorted(each["Type"] for each in resources().values())

    assert kinds == [
        "AWS::ApiGatewayV2::Api",
        "AWS::ApiGatewayV2::Stage",
        "AWS::DynamoDB::Table",
        "AWS::IAM::Role",
        "AWS::Lambda::Function",
        "AWS::Lambda::Permission",
        "AWS::Lambda::Permission",
        "AWS::Lambda::Permission",
        "AWS::Lambda::Url",
        "AWS::Logs::LogGroup",
    ]


def test_the_role_reaches_this_table_and_this_log_group_only() -> None:
    (policy,) = resources()["Role"]["Properties"]["Policies"]
    granted = [
        (statement["Action"], statement["Resource"])
        for statement in policy["PolicyDocument"]["Statement"]
        if statement["Effect"] == "Allow"
    ]

    calls = ["DeleteItem", "GetItem", "PutItem", "Query", "UpdateItem"]
    assert granted == [
        ([f"dynamodb:{call}" for call in calls], {"Fn::GetAtt": ["Table", "Arn"]}),
        (["logs:CreateLogStream", "logs:PutLogEvents"], {"Fn::GetAtt": ["Logs", "Arn"]}),
    ]


def test_the_role_that_an_agent_shares_cannot_make_keys() -> None:
    (policy,) = resources()["Role"]["Properties"]["Policies"]
    (denied,) = [
        statement
        for statement in policy["PolicyDocument"]["Statement"]
        if statement["Effect"] == "Deny"
    ]

    assert denied["Action"] == [f"dynamodb:{call}Item" for call in ("Delete", "Put", "Update")]
    assert denied["Condition"] == {
        "ForAnyValue:StringLike": {"dynamodb:LeadingKeys": ["key#*", "cfg#keys"]}
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
        if isinstance(value, dict)
    }

    settings = Settings.from_env({"AWS_LAMBDA_FUNCTION_NAME": "f", **defaults})

    assert settings == Settings(on_lambda=True, table_name="table")


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARN", "ERROR"])
def test_every_log_level_of_the_template_is_a_good_setting(level: str) -> None:
    assert level in template()["Parameters"]["LogLevel"]["AllowedValues"]
    assert Settings.from_env({"LOG_LEVEL": level}).log_level.startswith(level)
