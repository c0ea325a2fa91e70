"""How a Chat Completions model's stream ended, which the OpenAI Agents SDK leaves out.

The SDK completes an answer that ran out of tokens or into a filter, and, of any server but OpenAI's
own, one whose stream was cut. So the models of a run are copies that look at the chunks.
"""

import copy
import dataclasses
from collections.abc import AsyncIterator
from typing import Any, Final

from agents import Model, ModelBehaviorError, RunConfig
from agents.exceptions import _mark_error_to_drain_stream_events
from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel

from channel.agent import Usage


_CUTS: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}


class StreamEndedError(ModelBehaviorError):
    """A stream that did not end as a whole answer does.

    `reason` is that of an incomplete response, or None where the stream just ended. `usage` is what
    the stream told of it.
    """

    def __init__(self, reason: str | None, usage: Usage) -> None:
        """Take how it ended."""
        super().__init__("The model's stream ended without a whole answer.")
        self.reason = reason
        self.usage = usage
        _mark_error_to_drain_stream_events(self)  # or what was not read yet would be lost


def watched(model: Model) -> Model:
    """Return a model whose streams raise `StreamEndedError`; other APIs' tell themselves how they ended."""
    if not isinstance(model, OpenAIChatCompletionsModel):
        return model
    made: Any = copy.copy(model)
    fetch = made._fetch_response  # noqa: SLF001 - nothing public shows the chunks

    async def fetch_watched(*args: Any, **kwargs: Any) -> Any:
        fetched: Any = await fetch(*args, **kwargs)
        if not isinstance(fetched, tuple):
            return fetched
        response, stream = fetched
        return response, _Watched(stream)

    made._fetch_response = fetch_watched  # noqa: SLF001 - as above
    return made  # type: ignore[no-any-return]  # it is a copy of the model


def watching(config: RunConfig) -> RunConfig:
    """Return the configuration with models that are watched, those that it finds by name, too."""
    provider: Any = copy.copy(config.model_provider)
    get_model = provider.get_model
    provider.get_model = lambda name: watched(get_model(name))
    model = config.model
    return dataclasses.replace(
        config,
        model_provider=provider,
        model=watched(model) if isinstance(model, Model) else model,
    )


class _Watched:
    """A stream of chunks; whatever else is asked of it is asked of the client's own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def __aiter__(self) -> AsyncIterator[Any]:
        reason: str | None = None
        usage = Usage()
        async for chunk in self._stream:
            reason = next((c.finish_reason for c in chunk.choices if c.finish_reason), reason)
            if chunk.usage is not None:
                usage = _usage(chunk.usage)
            yield chunk
        if reason is None or reason in _CUTS:
            raise StreamEndedError(_CUTS.get(reason or ""), usage)


def _usage(usage: Any) -> Usage:
    given, made = usage.prompt_tokens_details, usage.completion_tokens_details
    return Usage(
        usage.prompt_tokens or 0,
        usage.completion_tokens or 0,
        getattr(given, "cached_tokens", 0) or 0,
        getattr(given, "cache_write_tokens", 0) or 0,
        getattr(made, "reasoning_tokens", 0) or 0,
    )
