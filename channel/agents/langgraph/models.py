"""Chat models as a request wants them: with its tools, its JSON format and its limits."""

import inspect
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, Final, cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableConfig,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import merge_configs

from channel.agent import Turn
from channel.agents.langgraph.speech import Names
from channel.agents.reading import (
    ClientTool,
    JsonFormat,
    client_tools as tools_of,
    json_format,
    reasoning_effort,
    tool_mode,
    unsupported,
)


SETTINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "max_output_tokens": ("max_tokens", "max_output_tokens", "num_predict"),
    "temperature": ("temperature",),
    "top_p": ("top_p",),
}
"""Request options, and what the fields of chat models for them are called."""

EFFORT: Final = "reasoning_effort"

_TAKES_FORMAT: Final = frozenset({"langchain_mistralai", "langchain_ollama"})
"""Packages whose models take `response_format` without saying so in their profile."""

_TAKES_ANY_OBJECT: Final = _TAKES_FORMAT | {"langchain_openai"}
"""Packages whose models take it without a schema, though not beside tools."""

_LONGEST_NAME: Final = 64
_ANY_OBJECT: Final = {"type": "object", "properties": {}, "additionalProperties": True}


class Asked:
    """What one turn asks of its models, and whether they were given it."""

    def __init__(self, turn: Turn) -> None:
        """Read the turn."""
        self.tools = tools_of(turn)
        self.format = json_format(turn)
        self.is_parallel = turn.parallel_tool_calls
        is_forced = tool_mode(turn) == "required" and bool(self.tools)
        self.choice = _choice(turn, self.tools) if is_forced else None
        self.settings: dict[str, Any] = {
            option: value for option in SETTINGS if (value := turn.options.get(option)) is not None
        }
        if (effort := reasoning_effort(turn)) is not None:
            self.settings[EFFORT] = effort
        self.has_called = False
        """Whether a tool was called: `tool_choice` counts for the first call only."""
        self.given: set[str] = set()
        """The parameters of the request that a model was given: `tools`, `tool_choice`, `text.format`."""

    @property
    def names(self) -> Names:
        """The names of the tools that end the turn."""
        client = frozenset(tool.name for tool in self.tools)
        return Names(client, self._answer_name if self.format else None)

    @property
    def answer_tool(self) -> dict[str, Any]:
        """The tool whose arguments are the answer, for models that have no other way to give JSON."""
        wanted = self.format or JsonFormat()
        return _function(
            self._answer_name,
            wanted.description or "Call this to give your answer, which is its arguments.",
            wanted.schema or _ANY_OBJECT,
            is_strict=wanted.strict,
        )

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The client's tools in OpenAI's form, which all chat models take in `bind_tools`."""
        return [
            _function(tool.name, tool.description, tool.parameters, is_strict=tool.strict)
            for tool in self.tools
        ]

    @property
    def _answer_name(self) -> str:
        return f"give_{(self.format or JsonFormat()).name}"[:_LONGEST_NAME]

    def missing(self) -> str | None:
        """Return a parameter of the request that no model was given, or None."""
        is_free = self.choice is None or self.has_called
        asked = {
            "tools": bool(self.tools),
            "tool_choice": not is_free,
            "text.format": self.format is not None,
        }
        return next((name for name in asked if asked[name] and name not in self.given), None)


_ASKED: ContextVar[Asked | None] = ContextVar("asked", default=None)


def begin(turn: Turn) -> Asked:
    """Return what the turn asks, which holds for all that its task calls from now on."""
    asked = Asked(turn)
    _ASKED.set(asked)
    return asked


def client_tools() -> list[dict[str, Any]]:
    """Return the tools that the running request brings, in OpenAI's form; none outside of a turn.

    A node binds them with its own, at each call: `model.bind_tools([*tools, *client_tools()])`.
    """
    asked = _ASKED.get()
    if asked is None:
        return []
    asked.given.add("tools")
    return asked.schemas


def as_requested(model: Any) -> Any:
    """Return a chat model that does what the running request asks for, at each of its calls.

        agent = create_react_agent(as_requested(model), tools)

    It binds the request's tools beside those of `bind_tools`, its `tool_choice`, its JSON format,
    and sets its limits (`max_output_tokens` only below the model's own) on a copy of the model.
    Outside of a turn it is the model. `model` is a chat model, also with bindings, retries or
    fallbacks around it.
    """
    return model if isinstance(model, _AsRequested) else _AsRequested(bound=model)


class _AsRequested(RunnableBinding[LanguageModelInput, AIMessage]):
    own_tools: Sequence[Any] = ()
    own_options: Mapping[str, Any] = {}

    def bind_tools(self, tools: Sequence[Any], **options: Any) -> "_AsRequested":
        return self.model_copy(update={"own_tools": [*tools], "own_options": options})

    def bind(self, **kwargs: Any) -> "_AsRequested":
        return self.model_copy(update={"kwargs": {**self.kwargs, **kwargs}})

    def with_config(self, config: RunnableConfig | None = None, **kwargs: Any) -> "_AsRequested":
        merged = merge_configs(self.config, config, cast("RunnableConfig", kwargs))
        return self.model_copy(update={"config": merged})

    def _now(self) -> Runnable[LanguageModelInput, AIMessage]:
        inner = _asked_of(self.bound, self.own_tools, self.own_options, _ASKED.get())
        outer = RunnableBinding(bound=self.bound, kwargs=self.kwargs, config=self.config)
        requested: Runnable[LanguageModelInput, AIMessage] = _around(outer, inner)
        return requested

    def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> AIMessage:  # noqa: A002 - LangChain's name
        return self._now().invoke(input, config, **kwargs)

    async def ainvoke(self, input: Any, config: Any = None, **kwargs: Any) -> AIMessage:  # noqa: A002 - LangChain's name
        return await self._now().ainvoke(input, config, **kwargs)

    def stream(self, input: Any, config: Any = None, **kwargs: Any) -> Iterator[AIMessage]:  # noqa: A002 - LangChain's name
        yield from self._now().stream(input, config, **kwargs)

    async def astream(
        self,
        input: Any,  # noqa: A002 - LangChain's name
        config: Any = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessage]:
        messages: Any = self._now().astream(input, config, **kwargs)
        async with aclosing(messages):
            async for message in messages:
                yield message

    # Those of a binding go around the four above, or lose the two fields.
    batch = Runnable.batch
    abatch = Runnable.abatch
    transform = Runnable.transform
    atransform = Runnable.atransform
    with_listeners = Runnable.with_listeners
    with_retry = Runnable.with_retry  # type: ignore[assignment] # it has named parameters
    with_types = Runnable.with_types  # type: ignore[assignment] # it takes classes only


def _asked_of(
    model: Any, tools: Sequence[Any], options: Mapping[str, Any], asked: Asked | None
) -> Any:
    """Return the model with its own tools and what the request asks for."""
    if isinstance(model, _AsRequested):
        return model  # it does so itself
    if isinstance(model, RunnableWithFallbacks):
        first, *others = (
            _asked_of(each, tools, options, asked) for each in (model.runnable, *model.fallbacks)
        )
        return model.model_copy(update={"runnable": first, "fallbacks": others})
    if isinstance(model, RunnableBindingBase):
        return _around(model, _asked_of(model.bound, tools, options, asked))
    if asked is None:
        return model.bind_tools(tools, **options) if tools else model
    return _bound(_limited(model, asked.settings), tools, dict(options), asked)


def _around(outer: Any, inner: Any) -> Any:
    """Return a binding around another model; its tools come before those of the model."""
    kwargs = dict(outer.kwargs)
    if "tools" in kwargs:
        kwargs["tools"] = [*kwargs["tools"], *_tools_in(inner)]
    return outer.model_copy(update={"bound": inner, "kwargs": kwargs})


def _tools_in(model: Any) -> Sequence[Any]:
    """Return the tools that a model is bound to."""
    while isinstance(model, RunnableBindingBase | RunnableWithFallbacks):
        if isinstance(model, RunnableWithFallbacks):
            model = model.runnable
        elif "tools" in model.kwargs:
            tools: Sequence[Any] = model.kwargs["tools"]
            return tools
        else:
            model = model.bound
    return ()


def _bound(model: Any, own: Sequence[Any], options: dict[str, Any], asked: Asked) -> Any:
    tools = [*own, *asked.schemas]
    wanted: dict[str, Any] = {}
    if asked.format is not None:
        if _takes_format(model, asked.format, has_tools=bool(tools)):
            wanted = {"response_format": _response_format(asked.format)}
        else:
            tools.append(asked.answer_tool)
            options["tool_choice"] = "any"
    if asked.choice is not None and not asked.has_called:
        options["tool_choice"] = asked.choice
    if asked.tools and not asked.is_parallel and _has_parameter(model, "parallel_tool_calls"):
        options["parallel_tool_calls"] = False
    asked.given |= {"tools", "tool_choice", "text.format"}
    if not tools:
        return model.bind(**wanted) if wanted else model
    try:
        return model.bind_tools(tools, **options, **wanted)
    except NotImplementedError:
        raise unsupported("tools", "tools" if asked.tools else "text.format") from None


def _limited(model: Any, settings: Mapping[str, Any]) -> Any:
    """Return a copy of the model with these settings, as far as it has fields for them."""
    fields: Mapping[str, Any] = getattr(type(model), "model_fields", {})
    update: dict[str, Any] = {}
    for option, value in settings.items():
        name = next((name for name in SETTINGS.get(option, (option,)) if name in fields), None)
        if name is None:
            continue
        own = getattr(model, name)
        is_limit = option == "max_output_tokens" and isinstance(own, int)
        update[name] = min(own, value) if is_limit and own > 0 else value
    return model.model_copy(update=update) if update else model


def _takes_format(model: Any, wanted: JsonFormat, *, has_tools: bool) -> bool:
    """Return whether the model gives JSON by `response_format`, LangChain's common name for it."""
    package = type(model).__module__.partition(".")[0]
    if wanted.schema is None:
        return package in _TAKES_ANY_OBJECT and not has_tools
    # Before its third series, Gemini's models give no JSON beside tools.
    name = str(getattr(model, "model_name", None) or getattr(model, "model", None) or "").lower()
    is_old_gemini = "gemini" in name and "gemini-3" not in name
    profile: Mapping[str, Any] = getattr(model, "profile", None) or {}
    is_native = profile.get("structured_output") is True or package in _TAKES_FORMAT
    return is_native and not (has_tools and is_old_gemini)


def _response_format(wanted: JsonFormat) -> dict[str, Any]:
    if wanted.schema is None:
        return {"type": "json_object"}
    # Some packages know a schema by its title.
    schema = {**wanted.schema, "title": wanted.name}
    named: dict[str, Any] = {"name": wanted.name, "schema": schema}
    if wanted.description:
        named["description"] = wanted.description
    if wanted.strict:
        named["strict"] = True
    return {"type": "json_schema", "json_schema": named}


def _function(
    name: str, description: str, parameters: Mapping[str, Any], *, is_strict: bool
) -> dict[str, Any]:
    function = {"name": name, "description": description, "parameters": dict(parameters)}
    return {"type": "function", "function": {**function, **({"strict": True} if is_strict else {})}}


def _choice(turn: Turn, tools: Sequence[ClientTool]) -> str:
    """Return the one function that must be called, or `any`: what all chat models understand."""
    is_one = isinstance(turn.tool_choice, Mapping) and turn.tool_choice.get("type") == "function"
    return tools[0].name if is_one else "any"


def _has_parameter(model: Any, name: str) -> bool:
    return name in inspect.signature(model.bind_tools).parameters
