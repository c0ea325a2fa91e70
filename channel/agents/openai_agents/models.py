"""Models of the OpenAI Agents SDK: what a turn must know of one, and one that says what it once said."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from agents import Agent, Model, ModelResponse, ModelSettings, RunConfig
from agents.items import TResponseStreamEvent
from agents.models import get_default_model, gpt_5_reasoning_settings_required
from agents.models.fake_id import FAKE_RESPONSES_ID
from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
from agents.models.openai_responses import OpenAIResponsesModel
from msgspec import Struct
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputItem,
    ResponseReasoningItem,
)


ENCRYPTED_REASONING: Final = "reasoning.encrypted_content"

_O_SERIES: Final = ("o1", "o3", "o4")


class Traits(Struct, frozen=True):
    """What a turn must know of its model.

    `is_responses`: it speaks the Responses API, and takes all of its items. `fetches`: its library
    would download in this process what a URL names. `can_store`: its provider keeps responses unless
    it is told not to. `reasons`: its reasoning can come encrypted, for the next call.
    """

    is_responses: bool = False
    is_chat: bool = False
    fetches: bool = False
    can_store: bool = True
    reasons: bool = False


def model_of(agent: Agent[Any], config: RunConfig) -> Model:
    """Return the model that the run will call for this agent."""
    named = config.model if config.model is not None else agent.model
    return named if isinstance(named, Model) else config.model_provider.get_model(named)


def traits_of(model: Model) -> Traits:
    """Return what a turn must know of the model."""
    if isinstance(model, OpenAIResponsesModel):
        return Traits(is_responses=True, reasons=_reasons(str(model.model or get_default_model())))
    if isinstance(model, OpenAIChatCompletionsModel):
        # Other servers of this API may refuse a field that is only OpenAI's.
        return Traits(is_chat=True, can_store=_is_openai(model))
    if any(each.__module__.startswith("agents.extensions.") for each in type(model).__mro__):
        return Traits(is_chat=True, fetches=True, can_store=False)
    return Traits(fetches=True)  # nobody knows what it does with a URL


def joined(traits: Sequence[Traits]) -> Traits:
    """Return what all the models that a turn may reach take."""
    return Traits(
        is_responses=all(each.is_responses for each in traits),
        is_chat=any(each.is_chat for each in traits),
        fetches=any(each.fetches for each in traits),
    )


def own_settings(settings: ModelSettings, traits: Traits) -> Mapping[str, Any]:
    """Return what the settings need so that nothing of the conversation is kept by the provider.

    A user's own `store` wins. Reasoning that is not stored must come back whole, and encrypted.
    """
    needed: dict[str, Any] = {}
    if settings.store is None and traits.can_store:
        needed["store"] = False
    if (
        traits.is_responses
        and not settings.store
        and (traits.reasons or settings.reasoning is not None)
    ):
        include = [*(settings.response_include or ()), ENCRYPTED_REASONING]
        needed["response_include"] = list(dict.fromkeys(include))
    return needed


class Replay(Model):
    """A model that once more says what the model said before; then `after` is called, and it is done."""

    def __init__(self, items: Iterable[Mapping[str, Any]], after: Callable[[], None]) -> None:
        """Take function calls, and the reasoning that came before them, as input items."""
        self._output = [_output(item) for item in items]
        self._after = after

    @property
    def calls(self) -> list[ResponseFunctionToolCall]:
        """The calls that it says."""
        return [item for item in self._output if isinstance(item, ResponseFunctionToolCall)]

    async def get_response(self, *_args: Any, **_kwargs: Any) -> ModelResponse:
        """Say nothing: turns stream."""
        raise NotImplementedError

    async def stream_response(
        self, *_args: Any, **_kwargs: Any
    ) -> AsyncIterator[TResponseStreamEvent]:
        """Say it in one event, of which nothing was streamed before."""
        self._after()
        response = Response(
            id=FAKE_RESPONSES_ID,
            object="response",
            created_at=0,
            model="replay",
            output=self._output,
            parallel_tool_calls=True,
            tool_choice="auto",
            tools=[],
        )
        yield ResponseCompletedEvent(
            type="response.completed", response=response, sequence_number=0
        )


def _output(item: Mapping[str, Any]) -> ResponseOutputItem:
    if item.get("type") == "reasoning":
        return ResponseReasoningItem.model_validate({"id": FAKE_RESPONSES_ID, **item})
    return ResponseFunctionToolCall.model_validate(item)


def _reasons(name: str) -> bool:
    return gpt_5_reasoning_settings_required(name) or name.startswith(_O_SERIES)


def _is_openai(model: OpenAIChatCompletionsModel) -> bool:
    url = str(getattr(getattr(model, "_client", None), "base_url", ""))
    return (urlsplit(url).hostname or "").endswith("openai.com")
