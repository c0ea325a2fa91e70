"""Whether a SAM template's doors and its functions agree on streaming; AWS checks no such thing.

A streaming door in front of a function without the streaming loop answers nothing that a client can
read, and so does a buffered door in front of one that streams: status and headers get lost.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml


_WRAPPER: Final = "AWS_LAMBDA_EXEC_WRAPPER"
_STREAMING: Final = "response-streaming-invocations"
_MODES: Final = frozenset({"RESPONSE_STREAM", "STREAM", "BUFFERED"})


class TemplateError(ValueError):
    """A template's doors and functions do not agree: one sentence a fault."""


def check_template(path: Path) -> None:
    """Raise `TemplateError` where a door expects what its function does not send."""
    try:
        template = yaml.load(path.read_text(), _Loader)  # noqa: S506 - a SafeLoader
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        msg = f"{path} is no YAML: {str(error).splitlines()[0]}."
        raise TemplateError(msg) from error
    if not isinstance(template, Mapping) or not isinstance(template.get("Resources"), Mapping):
        msg = f"{path} is no template: it has no Resources."
        raise TemplateError(msg)
    faults = [*find_faults(template)]
    if faults:
        raise TemplateError("\n".join(faults))


def find_faults(template: Mapping[str, Any]) -> Iterator[str]:
    """Find what is wrong with the doors of a template's own functions."""
    shared = _variables(template.get("Globals", {}).get("Function", {}))
    resources = {
        name: _with_variables(resource, shared)
        for name, resource in template.get("Resources", {}).items()
    }
    for name, resource in resources.items():
        properties = resource.get("Properties", {})
        if resource.get("Type") == "AWS::Serverless::Function":
            mode = properties.get("FunctionUrlConfig", {}).get("InvokeMode", "BUFFERED")
            if "FunctionUrlConfig" in properties:
                yield from _faults_of_url(name, properties, mode)
        elif resource.get("Type") == "AWS::Lambda::Url":
            target = _named(properties.get("TargetFunctionArn"), resources)
            if target:
                mode = properties.get("InvokeMode", "BUFFERED")
                yield from _faults_of_url(target, resources[target]["Properties"], mode)
        elif resource.get("Type") == "AWS::ApiGateway::Method":
            yield from _faults_of_method(name, properties.get("Integration", {}), resources)


def _faults_of_url(name: str, function: Mapping[str, Any], mode: Any) -> Iterator[str]:
    told = _variables(function).get("FUNCTION_URL_MODE", "RESPONSE_STREAM")
    if not {mode, told} <= _MODES:
        return  # a parameter decides, which is not known here
    has_loop = _has_loop(function)
    if mode == "RESPONSE_STREAM" and not has_loop:
        yield _without_loop(name, "function URL's InvokeMode is RESPONSE_STREAM")
    if has_loop and mode != told:
        yield (
            f"{name}: the function URL's InvokeMode is {mode}, but the setting FUNCTION_URL_MODE is "
            f"{told}: make them the same, or clients cannot read the replies."
        )


def _faults_of_method(
    name: str, integration: Mapping[str, Any], resources: Mapping[str, Any]
) -> Iterator[str]:
    target = _named(integration.get("Uri"), resources)
    if target is None:
        return
    function = resources[target]["Properties"]
    mode = integration.get("ResponseTransferMode", "BUFFERED")
    told = _variables(function).get("REST_API_MODE", "BUFFERED")
    if not {mode, told} <= _MODES:
        return
    if mode == "STREAM" and not _has_loop(function):
        yield _without_loop(target, f"method {name} has the ResponseTransferMode STREAM")
    elif mode != told and _has_loop(function):
        yield (
            f"{name}: its ResponseTransferMode is {mode}, but the setting REST_API_MODE of {target} "
            f"is {told}: make them the same, or clients cannot read the replies."
        )
    if (mode == "STREAM") is not (_STREAMING in str(integration.get("Uri"))):
        yield (
            f"{name}: a Uri that ends with {_STREAMING} belongs to the ResponseTransferMode STREAM, "
            "and to no other."
        )


def _without_loop(name: str, door: str) -> str:
    return (
        f"{name}: the {door}, but the function has no streaming loop: set {_WRAPPER} to "
        "/var/task/handler/exec-wrapper, or the Handler to handler.takeover.handler."
    )


def _has_loop(function: Mapping[str, Any]) -> bool:
    wrapper = str(_variables(function).get(_WRAPPER, ""))
    takes_over = str(function.get("Handler", "")).startswith("handler.takeover.")
    return takes_over or wrapper.endswith("handler/exec-wrapper")


def _with_variables(resource: Mapping[str, Any], shared: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a function with what the template's Globals give to all functions."""
    if resource.get("Type") != "AWS::Serverless::Function":
        return resource
    function = resource.get("Properties", {})
    environment = {"Variables": {**shared, **_variables(function)}}
    return {**resource, "Properties": {**function, "Environment": environment}}


def _variables(function: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = function.get("Environment", {}).get("Variables", {})
    return found


def _named(reference: Any, resources: Mapping[str, Any]) -> str | None:
    """Return which function of the template a reference, an ARN or a URI speaks of."""
    functions = [
        name
        for name, resource in resources.items()
        if str(resource.get("Type")) in ("AWS::Serverless::Function", "AWS::Lambda::Function")
    ]
    said = str(reference)
    return next((name for name in functions if name in said), None)


class _Loader(yaml.SafeLoader):
    """Reads CloudFormation's short forms (`!Ref`, `!Sub`, …) as what they are applied to."""


def _applied(loader: yaml.SafeLoader, _suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True)  # type: ignore[arg-type]


_Loader.add_multi_constructor("!", _applied)
