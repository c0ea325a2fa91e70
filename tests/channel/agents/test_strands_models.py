"""Models of Strands for one turn: the request's options by class, and the model left as it was."""

from collections.abc import AsyncGenerator
from typing import Any

import boto3
import pytest
from strands.models import BedrockModel, Model, ModelRouter
from strands.models.openai import OpenAIModel
from strands.models.openai_responses import OpenAIResponsesModel

from channel.agents.strands.models import PacedModel, models_of, options_of, tuned
from tests.channel.agents.frameworks.strands import ScriptedModel


pytestmark = pytest.mark.anyio

OPTIONS = {"max_output_tokens": 64, "temperature": 0.5, "top_p": 0.9, "reasoning": "low"}


def bedrock() -> BedrockModel:
    session = boto3.Session("key", "secret", region_name="us-east-1")
    return BedrockModel(boto_session=session, model_id="some.model", temperature=1.0)


def openai(**params: Any) -> OpenAIModel:
    return OpenAIModel(client_args={"api_key": "none"}, model_id="some", params=params)


def responses(**params: Any) -> OpenAIResponsesModel:
    return OpenAIResponsesModel(client_args={"api_key": "none"}, model_id="some", params=params)


class Unknown(Model):
    """A model of the user's own, whose configuration is an object."""

    class Config:
        temperature = 1.0

    def __init__(self) -> None:
        self.given = self.Config()

    def update_config(self, **model_config: Any) -> None:
        self.given.__dict__.update(model_config)

    def get_config(self) -> Any:
        return self.given

    def structured_output(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        for number in range(3):
            yield number


@pytest.mark.parametrize(
    ("model", "configured"),
    [
        (bedrock(), {"max_tokens": 64, "temperature": 0.5, "top_p": 0.9}),
        (
            openai(seed=1),
            {
                "params": {
                    "seed": 1,
                    "max_completion_tokens": 64,
                    "temperature": 0.5,
                    "top_p": 0.9,
                    "reasoning_effort": "low",
                }
            },
        ),
        (
            openai(max_tokens=100),  # for a server that knows the older name
            {
                "params": {
                    "max_tokens": 64,
                    "temperature": 0.5,
                    "top_p": 0.9,
                    "reasoning_effort": "low",
                }
            },
        ),
        (
            responses(reasoning={"summary": "auto"}),
            {
                "params": {
                    "reasoning": {"summary": "auto", "effort": "low"},
                    "max_output_tokens": 64,
                    "temperature": 0.5,
                    "top_p": 0.9,
                }
            },
        ),
        (ScriptedModel([]), {"max_tokens": 64, "temperature": 0.5}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_options_become_what_a_model_calls_them(model: Model, configured: dict[str, Any]) -> None:
    before = dict(model.get_config())

    made = tuned(model, OPTIONS)

    config = dict(made.get_config())
    assert {name: config[name] for name in configured} == configured
    assert dict(model.get_config()) == before
    assert type(made) is type(model)


def test_the_clients_of_a_model_are_shared() -> None:
    model = bedrock()

    assert vars(tuned(model, OPTIONS))["client"] is model.client


def test_a_model_without_such_a_configuration_has_no_options() -> None:
    model = Unknown()

    assert options_of(model) == frozenset()
    assert tuned(model, OPTIONS) is model


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (bedrock(), {"max_output_tokens", "temperature", "top_p"}),
        (openai(), {"max_output_tokens", "reasoning", "temperature", "top_p"}),
        (responses(), {"max_output_tokens", "reasoning", "temperature", "top_p"}),
        (ScriptedModel([]), {"max_output_tokens", "temperature"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_options_are_what_a_model_can_be_configured_with(model: Model, options: set[str]) -> None:
    assert options_of(model) == options


def test_a_router_may_call_each_of_its_models() -> None:
    one, two, three = ScriptedModel([]), ScriptedModel([]), Unknown()
    router = ModelRouter([one, ModelRouter([two, three])])

    assert models_of(one, router) == [one, two, three]
    assert models_of(one, None) == [one]


async def test_a_paced_model_waits_before_each_chunk() -> None:
    waits: list[int] = []

    async def ready() -> None:
        waits.append(len(waits))

    model = PacedModel(Unknown(), ready)

    assert [chunk async for chunk in model.stream()] == [0, 1, 2]
    assert waits == [0, 1, 2]
    assert model.get_config().temperature == 1.0
