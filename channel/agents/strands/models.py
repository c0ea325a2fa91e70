"""Models of Strands for one turn: with the request's options, and no faster than who is told."""

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping
from copy import copy
from typing import Any, Final, get_args, get_type_hints

from strands.models import Model, ModelRouter

from channel.agents.strands.endings import CutOffError, wanted_chunks, watch


_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "max_output_tokens": ("max_tokens", "max_completion_tokens"),
    "temperature": ("temperature",),
    "top_p": ("top_p",),
}
"""What the configuration of a model calls a request's option, where it has a key of its own for it."""
_PARAMS: Final = "params"
"""The key of models that pass such options on as they are."""
_LIMITS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_LIMIT_OF: Final[Mapping[str, str]] = {
    "GeminiModel": "max_output_tokens",
    "OpenAIResponsesModel": "max_output_tokens",
    "OpenAIModel": "max_completion_tokens",
}
"""What `params` calls the limit of the output, by the class of the model; `max_tokens` elsewhere."""
_EFFORTS: Final[Mapping[str, str]] = {
    "OpenAIModel": "reasoning_effort",
    "OpenAIResponsesModel": "reasoning",
}
"""What `params` calls the effort of reasoning, by the class of the model."""


def models_of(model: Model, router: ModelRouter | None) -> list[Model]:
    """Return the models that an agent may call: its own, or those that its router chooses from."""
    if router is None:
        return [model]
    candidates = [candidate.model for candidate in router.candidates]
    return [
        each
        for candidate in candidates
        for each in (
            models_of(candidate.default_model, candidate)
            if isinstance(candidate, ModelRouter)
            else [candidate]
        )
    ]


def options_of(model: Model) -> frozenset[str]:
    """Return the request's options that a model can be configured with."""
    keys = _config_keys(model)
    options = {name for name, known in _NAMES.items() if keys.intersection((*known, _PARAMS))}
    if _PARAMS in keys and _of_class(model, _EFFORTS) is not None:
        options.add("reasoning")
    return frozenset(options)


def tuned(model: Model, options: Mapping[str, Any]) -> Model:
    """Return a copy of a model that is configured with these options; the clients are shared.

    `reasoning` is the effort. Options that the model has no configuration for are left out. One of
    Strands' own models fails where its stream is cut off (`endings`).
    """
    keys = _config_keys(model)
    config: dict[str, Any] = {}
    params: dict[str, Any] = {}
    for option, value in options.items():
        name = next((name for name in _NAMES.get(option, ()) if name in keys), None)
        if name is not None:
            config[name] = value
        elif _PARAMS in keys:
            params |= _param(option, value, model)
    if params:
        config[_PARAMS] = {**_params(model), **params}
    if not config and not (wanted_chunks(model) and hasattr(model, "__dict__")):
        return model
    made = _with_own_config(model)
    if config:
        made.update_config(**config)
    watch(made)
    return made


class PacedModel:
    """A model that goes on when `ready` says so: it waits within the run, where a cancellation ends it.

    It is in all else the model that it stands for.
    """

    def __init__(self, model: Model, ready: Callable[[], Awaitable[Any]]) -> None:
        """Stand for the model."""
        self._paced_model = model
        self._paced_ready = ready

    def __getattr__(self, name: str) -> Any:
        """Return what the model has."""
        return getattr(self._paced_model, name)

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """Yield the model's chunks, each when the last one was taken; raises `CutOffError`."""
        chunks: AsyncIterable[Any] = self._paced_model.stream(*args, **kwargs)
        missing = wanted_chunks(self._paced_model)
        try:
            async for chunk in chunks:
                await self._paced_ready()
                missing = missing.difference(chunk) if missing else missing
                yield chunk
            if missing:
                raise CutOffError("the model's stream ended before its answer did")
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()


def _config_keys(model: Model) -> frozenset[str]:
    """Return the keys of a model's configuration: declared by `update_config`, or in it now."""
    if not hasattr(model, "__dict__"):
        return frozenset()  # it could not be copied
    config = model.get_config()
    keys = frozenset(config) if isinstance(config, Mapping) else frozenset()
    try:
        hints = get_type_hints(type(model).update_config)
    except (NameError, TypeError):
        return keys
    declared = [config for hint in hints.values() for config in get_args(hint)]  # of Unpack[…]
    return keys.union(*(getattr(config, "__annotations__", {}) for config in declared))


def _params(model: Model) -> Mapping[str, Any]:
    config = model.get_config()
    params = config.get(_PARAMS) if isinstance(config, Mapping) else None
    return params if isinstance(params, Mapping) else {}


def _param(option: str, value: Any, model: Model) -> dict[str, Any]:
    given = _params(model)
    if option == "reasoning":
        name = _of_class(model, _EFFORTS)
        if name == "reasoning":
            return {name: {**(given.get(name) or {}), "effort": value}}
        return {name: value} if name else {}
    if option == "max_output_tokens":
        named = next((name for name in _LIMITS if name in given), None)
        return {named or _of_class(model, _LIMIT_OF) or "max_tokens": value}
    return {option: value}


def _of_class(model: Model, table: Mapping[str, str]) -> str | None:
    return next(
        (table[each.__name__] for each in type(model).__mro__ if each.__name__ in table), None
    )


def _with_own_config(model: Model) -> Model:
    """Return a copy whose configuration can be changed without changing the model's."""
    made: Model = object.__new__(type(model))
    config = model.get_config()
    made.__dict__.update(
        (name, copy(value) if isinstance(value, dict) or value is config else value)
        for name, value in vars(model).items()
    )
    return made
