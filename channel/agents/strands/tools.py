"""Tools that a turn adds to a Strands agent: the client's functions, and the answer in a form."""

from collections.abc import Mapping
from contextvars import ContextVar
from copy import deepcopy
from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, model_validator
from strands.middleware import ToolResultEvent
from strands.tools.structured_output.structured_output_tool import StructuredOutputTool
from strands.types.tools import AgentTool, ToolGenerator, ToolSpec, ToolUse

from channel.agents.reading import ClientTool, JsonFormat


class Called:
    """Told by a declared tool, in the stream of a run, that its call is the client's to answer."""


class DeclaredTool(AgentTool):
    """A function that the client runs: its call ends the run, once the other calls of its message ran."""

    def __init__(self, tool: ClientTool) -> None:
        """Declare the function."""
        super().__init__()
        self._tool = tool

    @property
    def tool_name(self) -> str:
        """The name of the function."""
        return self._tool.name

    @property
    def tool_spec(self) -> ToolSpec:
        """What the model is told of it."""
        return {
            "name": self._tool.name,
            "description": self._tool.description or self._tool.name,  # models want one
            "inputSchema": {"json": {"type": "object", **deepcopy(dict(self._tool.parameters))}},
        }

    @property
    def tool_type(self) -> str:
        """What kind of tool it is, in Strands' lists."""
        return "client"

    async def stream(
        self, tool_use: ToolUse, invocation_state: dict[str, Any], **_kwargs: Any
    ) -> ToolGenerator:
        """End the run after the calls that were made with this one."""
        invocation_state["agent"].cancel(after_current_tools=True)
        yield Called()
        yield ToolResultEvent(
            {
                "toolUseId": tool_use["toolUseId"],
                "status": "success",
                "content": [{"text": "The client runs it."}],
            }
        )


wanted_form: ContextVar[JsonFormat | None] = ContextVar("wanted_form", default=None)
"""The form that the answer of this turn must have."""

_ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object", "properties": {}}


def form_schema() -> dict[str, Any]:
    """Return the schema of the wanted form."""
    form = wanted_form.get()
    return deepcopy(dict(form.schema if form and form.schema else _ANY_OBJECT))


class FinalAnswer(BaseModel):
    """The final answer, in the form that is wanted."""

    # One class for all turns: Strands keeps what it makes of each class for ever.
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="allow")

    @classmethod
    def model_json_schema(cls, *_args: Any, **_kwargs: Any) -> dict[str, Any]:
        """Return the schema of this turn's form."""
        return form_schema()

    @model_validator(mode="before")
    @classmethod
    def _fits(cls, data: Any) -> Any:
        wrong = misfit(data, form_schema())
        if wrong is not None:
            raise ValueError(wrong)
        return data

    @classmethod
    def told(cls, spec: ToolSpec) -> ToolSpec:
        """Return what the model is told of the tool that takes the answer, in this turn."""
        form = wanted_form.get()
        more = f" {form.description}" if form and form.description else ""
        return {
            **spec,
            "description": spec["description"] + more,
            "inputSchema": {"json": form_schema()},
        }


def misfit(value: Any, schema: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a value under a JSON schema, or None where nothing is found.

    Looked at are types, enums, properties, items and references within the schema, each value once:
    a client's schema must not be able to keep the process busy, as patterns and alternatives can.
    """
    return _Fitting(schema).misfit(value, schema, "The answer")


class _Fitting:
    """The comparison of one value with one schema."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root

    def misfit(self, value: Any, schema: Any, where: str) -> str | None:
        schema = self._resolved(schema)
        kinds = schema.get("type")
        listed = kinds if isinstance(kinds, list) else [kinds]
        if kinds is not None and not any(_is_a(value, kind) for kind in listed):
            return f"{where} must be of the type {kinds}."
        allowed = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if isinstance(allowed, list) and value not in allowed:
            return f"{where} must be one of {allowed}."
        if isinstance(value, dict):
            return self._misfit_of_object(value, schema, where)
        if isinstance(value, list):
            items = schema.get("items")
            found = (self.misfit(each, items, f"{where}[{i}]") for i, each in enumerate(value))
            return next(filter(None, found), None)
        return None

    def _misfit_of_object(
        self, value: dict[str, Any], schema: Mapping[str, Any], where: str
    ) -> str | None:
        properties = schema.get("properties")
        known = properties if isinstance(properties, Mapping) else {}
        required = schema.get("required")
        missing = [n for n in required if n not in value] if isinstance(required, list) else []
        if missing:
            return f"{where} lacks {missing}."
        odd = value.keys() - known.keys()
        if (
            odd
            and schema.get("additionalProperties") is False
            and "patternProperties" not in schema
        ):
            return f"{where} must not have {sorted(odd)}."
        found = (
            self.misfit(each, known[name], f"{where}.{name}")
            for name, each in value.items()
            if name in known
        )
        return next(filter(None, found), None)

    def _resolved(self, schema: Any) -> Mapping[str, Any]:
        """Follow references within the schema; what leads nowhere, or too far, says nothing."""
        for _ in range(_MOST_REFERENCES):
            if not isinstance(schema, Mapping):
                break
            reference = schema.get("$ref")
            if reference is None:
                return schema
            if not isinstance(reference, str) or not reference.startswith("#"):
                break
            schema = self._root
            for token in reference.removeprefix("#").split("/")[1:]:
                name = token.replace("~1", "/").replace("~0", "~")
                schema = schema.get(name) if isinstance(schema, Mapping) else None
        return {}


_MOST_REFERENCES: Final = 32
_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "number": (int, float),
    "integer": (int,),
}


def _is_a(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return bool(kind == "boolean")
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _KINDS.get(kind, (object,)) if isinstance(kind, str) else object)


# While no form is wanted: of some schemas, Strands could not make a tool.
StructuredOutputTool(FinalAnswer)
