"""Every JSON body and stream event of the scenarios builds the `openai` package's types, strictly."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from openai.types import Model
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from handler.app import create_app
from infra.settings import Settings
from tests.channel.chat.wire import required
from tests.e2e.doors import Client, direct
from tests.e2e.scenarios import SCENARIOS, Scenario


STREAM_EVENT: TypeAdapter[BaseModel] = TypeAdapter(ResponseStreamEvent)

UNTYPED = {"presence_penalty", "frequency_penalty", "store", "name"}
"""Fields that Open Responses or OpenAI's OpenAPI requires and the package's types do not have."""


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_what_a_scenario_reads_is_what_the_package_expects(scenario: Scenario) -> None:
    with direct(create_app(Settings(has_development_keys=True))) as door:
        client = Client(door)
        scenario(client)

    read = [body for reply in client.replies for body in _bodies(reply.is_stream, reply.body)]
    assert read
    for body in read:
        _require_typed(body)


def _bodies(is_stream: bool, body: bytes) -> Iterator[bytes]:
    if not is_stream:
        yield body
        return
    for line in body.splitlines():
        if line.startswith(b"data: {"):
            yield line.removeprefix(b"data: ")


def _require_typed(raw: bytes) -> None:
    body = json.loads(raw)
    match body:
        case {
            "error": {
                "message": str(),
                "type": str(),
                "param": str() | None,
                "code": str() | None,
                **others,
            }
        } if not others:
            pass  # the package has no type for it
        case {"deleted": True}:  # which it does not read
            assert body.keys() == {"id", "object", "deleted"}
        case {"object": "chat.completion" | "chat.completion.chunk"}:
            required(body)
        case {"type": _}:
            _require_same(STREAM_EVENT.validate_json(raw, strict=True), body)
        case {"object": "response"}:
            _require_same(Response.model_validate_json(raw, strict=True), body)
        case {"object": "list", "has_more": _}:
            _require_items(body)
        case {"object": "list", "data": models}:
            for model in models:
                _require_same(Model.model_validate(model, strict=True), model)
        case _:
            _require_same(Model.model_validate_json(raw, strict=True), body)


def _require_items(body: Mapping[str, Any]) -> None:
    known = [item for item in body["data"] if not item["type"].startswith("acme:")]
    listed = {**body, "data": known}
    _require_same(ResponseItemList.model_validate_json(json.dumps(listed), strict=True), listed)


def _require_same(model: BaseModel, body: Mapping[str, Any]) -> None:
    """Require that nothing was lost, nothing was added, and nothing was unknown to the types."""
    told = model.model_dump(mode="json", by_alias=True, exclude_unset=True, warnings="error")
    assert told == body
    if isinstance(body.get("type"), str):
        assert getattr(model, "type", None) == body["type"]
    assert set(_extras(model)) <= UNTYPED


def _extras(value: object) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from value.model_extra or ()
        for name in type(value).model_fields:
            yield from _extras(getattr(value, name))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            yield from _extras(each)
