"""A template whose doors and functions do not agree on streaming is told so before it is deployed."""

from pathlib import Path

import pytest

from handler.template_check import TemplateError, check_template


OURS = Path(__file__).parents[2] / "template.yaml"

WRAPPER = "AWS_LAMBDA_EXEC_WRAPPER: /var/task/handler/exec-wrapper"
STREAMING = "lambda:path/2021-11-15/functions/${Alias}/response-streaming-invocations"
BUFFERED = "lambda:path/2015-03-31/functions/${Alias}/invocations"


def template(
    invoke_mode: str = "RESPONSE_STREAM",
    variables: str = WRAPPER,
    handler: str = "handler.buffered.handler",
    transfer: str = "BUFFERED",
    uri: str = BUFFERED,
) -> str:
    return f"""
Resources:
  Agent:
    Type: AWS::Serverless::Function
    Properties:
      Handler: {handler}
      Environment:
        Variables: {{{variables}}}
      FunctionUrlConfig: {{AuthType: NONE, InvokeMode: {invoke_mode}}}
  Method:
    Type: AWS::ApiGateway::Method
    Properties:
      Integration:
        ResponseTransferMode: {transfer}
        Uri: !Sub
          - {uri}
          - Alias: !Ref Agent.Alias
"""


def faults(tmp_path: Path, text: str) -> str:
    path = tmp_path / "template.yaml"
    path.write_text(text)
    with pytest.raises(TemplateError) as raised:
        check_template(path)
    return str(raised.value)


def test_the_template_of_this_project_agrees_with_itself() -> None:
    check_template(OURS)


@pytest.mark.parametrize(
    "text",
    [
        template(),
        template(variables="", handler="handler.takeover.handler"),
        template(invoke_mode="BUFFERED", variables=f"{WRAPPER}, FUNCTION_URL_MODE: BUFFERED"),
        template(invoke_mode="BUFFERED", variables=""),
        template(variables=f"{WRAPPER}, REST_API_MODE: STREAM", transfer="STREAM", uri=STREAMING),
    ],
    ids=["wrapper", "take-over", "buffered by setting", "buffered without the loop", "REST"],
)
def test_doors_and_functions_that_agree_are_fine(tmp_path: Path, text: str) -> None:
    path = tmp_path / "template.yaml"
    path.write_text(text)

    check_template(path)


def test_a_streaming_url_needs_the_loop(tmp_path: Path) -> None:
    said = faults(tmp_path, template(variables=""))

    assert said.startswith("Agent: the function URL's InvokeMode is RESPONSE_STREAM, but the func")
    assert "/var/task/handler/exec-wrapper" in said


def test_a_buffered_url_needs_the_setting_that_says_so(tmp_path: Path) -> None:
    said = faults(tmp_path, template(invoke_mode="BUFFERED"))

    assert "InvokeMode is BUFFERED, but the setting FUNCTION_URL_MODE is RESPONSE_STREAM" in said


def test_a_url_of_its_own_is_looked_at_too(tmp_path: Path) -> None:
    url = """
  Url:
    Type: AWS::Lambda::Url
    Properties: {InvokeMode: RESPONSE_STREAM, TargetFunctionArn: !GetAtt Agent.Arn}
"""

    said = faults(tmp_path, template(invoke_mode="BUFFERED", variables="") + url)

    assert said.startswith("Agent: the function URL's InvokeMode is RESPONSE_STREAM")


@pytest.mark.parametrize(
    ("variables", "transfer", "uri", "expected"),
    [
        ("FUNCTION_URL_MODE: BUFFERED", "STREAM", STREAMING, "the function has no streaming loop"),
        (WRAPPER, "STREAM", STREAMING, "but the setting REST_API_MODE of Agent is BUFFERED"),
        (f"{WRAPPER}, REST_API_MODE: STREAM", "STREAM", BUFFERED, "belongs to the ResponseTransf"),
    ],
)
def test_a_streaming_method_needs_the_loop_its_setting_and_its_uri(
    tmp_path: Path, variables: str, transfer: str, uri: str, expected: str
) -> None:
    mode = "RESPONSE_STREAM" if WRAPPER in variables else "BUFFERED"

    assert expected in faults(tmp_path, template(mode, variables, transfer=transfer, uri=uri))


def test_what_the_template_gives_to_all_functions_counts(tmp_path: Path) -> None:
    shared = f"Globals: {{Function: {{Environment: {{Variables: {{{WRAPPER}}}}}}}}}"
    path = tmp_path / "template.yaml"
    path.write_text(f"{shared}\n{template(variables='')}")

    check_template(path)


def test_a_mode_that_a_parameter_decides_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "template.yaml"
    path.write_text(
        template("!Ref Mode", variables="").replace(", InvokeMode", ",\n        InvokeMode")
    )

    check_template(path)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"a: [", "is no YAML"),
        (b"\xff\xfe", "is no YAML"),
        (b"", "it has no Resources"),
        (b"Resources:", "it has no Resources"),
        (b"- a", "it has no Resources"),
    ],
)
def test_what_is_no_template_is_told_in_a_sentence(
    tmp_path: Path, written: bytes, said: str
) -> None:
    path = tmp_path / "template.yaml"
    path.write_bytes(written)

    with pytest.raises(TemplateError, match=said):
        check_template(path)
