"""Copies of Strands agents: one for each turn, with its own state, and with the same services.

What belongs to an agent is copied with it, attribute by attribute: its managers, registries and
plugins, its hook providers and intervention handlers, the agents among its tools, and the functions
that close over any of these. Containers are copied, locks and events are new. Everything else is a
service, and shared: models, tools, tool providers, sandboxes, memory stores, and all objects of
other packages.
"""

import copy
import threading
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from enum import Enum
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any, Final, TypeVar, cast

from strands import Agent, InterventionHandler, Plugin, Sandbox
from strands.agent.conversation_manager import ConversationManager
from strands.handlers.callback_handler import (
    CompositeCallbackHandler,
    PrintingCallbackHandler,
    null_callback_handler,
)
from strands.middleware import MiddlewareStage
from strands.models import Model
from strands.telemetry.metrics import EventLoopMetrics, MetricsClient
from strands.telemetry.tracer import Tracer
from strands.tools import ToolProvider
from strands.tools.decorator import DecoratedFunctionTool
from strands.tools.registry import ToolRegistry


_Copied = TypeVar("_Copied")

_OWN: Final = (Agent, ConversationManager, InterventionHandler, Plugin)
"""What belongs to an agent, of whatever package its class is; hook providers do, too."""
_SHARED: Final = (
    type,
    BaseException,
    Enum,
    dict,
    list,
    MetricsClient,
    MiddlewareStage,
    Model,
    Sandbox,
    ToolProvider,
    Tracer,
)
_SHARED_MODULES: Final = ("strands.background_tasks._runtime", "strands.vended_memory_stores")
_CONTAINERS: Final = (
    dict, OrderedDict, defaultdict, list, deque, set, frozenset, tuple,
)  # fmt: skip
_NEW: Final[dict[type, Callable[[], Any]]] = {
    type(threading.Lock()): threading.Lock,
    type(threading.RLock()): threading.RLock,
    threading.Event: threading.Event,
}


def copy_of(agent: Agent, *, session_id: str = "") -> Agent:
    """Return a copy of an agent that shares no state with it, has no metrics yet and prints nothing."""
    return _Copying(session_id).of(agent)


def silence(agent: Agent) -> None:
    """Keep an agent, and the agents among its tools, from printing what they do."""
    silent: set[int] = set()
    waiting = [agent]
    while waiting:
        each = waiting.pop()
        silent.add(id(each))
        each.callback_handler = _unprinted(each.callback_handler)
        tools = (getattr(tool, "agent", None) for tool in each.tool_registry.registry.values())
        waiting += [a for a in tools if isinstance(a, Agent) and id(a) not in silent]


def _unprinted(handler: Callable[..., Any]) -> Callable[..., Any]:
    if isinstance(handler, PrintingCallbackHandler):
        return null_callback_handler
    if isinstance(handler, CompositeCallbackHandler):
        return CompositeCallbackHandler(*map(_unprinted, handler.handlers))
    return handler


class _Copying:
    """One copying: each thing is copied once, however often it is referred to."""

    def __init__(self, session_id: str) -> None:
        self._copies: dict[int, Any] = {}  # by the id of the original
        self._looked_into: set[int] = set()
        self._session_id = session_id
        self._kinds: tuple[tuple[type, Callable[[Any], Any]], ...] = (
            (FunctionType, self._function),
            (MethodType, self._method),
            (partial, self._partial),
            (weakref.ref, self._reference),
            (weakref.WeakKeyDictionary, self._weak_keys),
            (DecoratedFunctionTool, self._tool),
        )

    def of(self, thing: _Copied) -> _Copied:
        if id(thing) in self._copies:
            found: _Copied = self._copies[id(thing)]
            return found
        made: _Copied = self._made(thing)
        return made

    def _made(self, thing: Any) -> Any:
        for kind, copied in self._kinds:
            if isinstance(thing, kind):
                return copied(thing)
        if (new := _NEW.get(type(thing))) is not None:
            return self._kept(thing, new())
        if type(thing) in _CONTAINERS:
            return self._container(thing)
        return self._object(thing) if _belongs(thing) else thing

    def _kept(self, thing: Any, made: _Copied) -> _Copied:
        self._copies[id(thing)] = made
        return made

    def _container(self, thing: Any) -> Any:
        if isinstance(thing, tuple | frozenset):
            return type(thing)(map(self.of, thing))
        made = self._kept(thing, copy.copy(thing))
        made.clear()
        if isinstance(thing, dict):
            made.update((key, self.of(value)) for key, value in thing.items())
        elif isinstance(thing, set):
            made.update(map(self.of, thing))
        else:
            made.extend(map(self.of, thing))
        return made

    def _object(self, thing: Any) -> Any:
        made = self._kept(thing, object.__new__(type(thing)))
        attributes = {name: self.of(value) for name, value in vars(thing).items()}
        if isinstance(thing, Agent):
            attributes |= {
                "event_loop_metrics": EventLoopMetrics(),
                "_session_id": self._session_id,
            }
        if isinstance(thing, ToolRegistry):
            # The end of a copy must not end the providers, which the original goes on to use.
            attributes["_tool_providers"] = []
        made.__dict__.update(attributes)
        if isinstance(thing, Agent):
            made.callback_handler = _unprinted(made.callback_handler)
        return made

    def _tool(self, tool: Any) -> Any:
        """Return a tool over the copy of what its function is bound to, or closes over, if anything."""
        function = self.of(vars(tool)["_tool_func"])
        if function is vars(tool)["_tool_func"]:
            return tool
        made = self._kept(tool, copy.copy(tool))
        made.__dict__.update(_tool_func=function, __wrapped__=function)
        return made

    def _function(self, function: FunctionType) -> FunctionType:
        held = [*_contents(function.__closure__ or ()), *(function.__defaults__ or ())]
        self._looked_into.add(id(function))
        is_ours = any(map(self._is_ours, held))
        self._looked_into.discard(id(function))
        if not is_ours:
            return function
        if id(function) in self._copies:  # by what it closes over, which closes over it
            return cast("FunctionType", self._copies[id(function)])
        cells = tuple(self._cell(cell) for cell in function.__closure__ or ())
        made = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
        self._kept(function, made)
        made.__dict__.update(function.__dict__)
        made.__defaults__ = self.of(function.__defaults__)
        made.__kwdefaults__ = self.of(function.__kwdefaults__)
        made.__annotations__ = function.__annotations__
        made.__qualname__, made.__module__ = function.__qualname__, function.__module__
        for cell, new in zip(function.__closure__ or (), cells, strict=True):
            if new is not cell and not _is_filled(new):
                for content in _contents([cell]):
                    new.cell_contents = self.of(content)
        return made

    def _cell(self, cell: CellType) -> CellType:
        made: CellType | None = self._copies.get(id(cell))
        return self._kept(cell, CellType()) if made is None else made

    def _is_ours(self, content: Any) -> bool:
        """Whether what a function closes over is copied, or leads to something that is."""
        if isinstance(content, MethodType):
            return self._is_ours(content.__self__)
        if isinstance(content, partial):
            return any(map(self._is_ours, (content.func, *content.args)))
        if isinstance(content, FunctionType):
            if id(content) in self._looked_into:  # it closes over itself, or over who looks
                return False
            return self.of(content) is not content
        return id(content) in self._copies or _belongs(content)

    def _method(self, method: MethodType) -> MethodType:
        owner = self.of(method.__self__)
        return method if owner is method.__self__ else MethodType(method.__func__, owner)

    def _partial(self, thing: partial[Any]) -> partial[Any]:
        function = self.of(thing.func)
        arguments = self.of(thing.args)
        return partial(function, *arguments, **self.of(thing.keywords))

    def _reference(self, reference: weakref.ref[Any]) -> weakref.ref[Any]:
        target = reference()
        made = self.of(target)
        return reference if made is target else weakref.ref(made)

    def _weak_keys(self, thing: weakref.WeakKeyDictionary[Any, Any]) -> Any:
        """Return what is kept by agent with the copies in place of their originals."""
        made = self._kept(thing, weakref.WeakKeyDictionary[Any, Any]())
        for key, value in thing.items():
            made[self.of(key)] = self.of(value)
        return made


def _belongs(thing: Any) -> bool:
    if isinstance(thing, _SHARED) or not hasattr(thing, "__dict__"):
        return False
    module = type(thing).__module__
    if module.startswith(_SHARED_MODULES):
        return False
    is_own = isinstance(thing, _OWN) or hasattr(type(thing), "register_hooks")
    return is_own or module.partition(".")[0] == "strands"


def _contents(cells: Iterable[CellType]) -> list[Any]:
    return [cell.cell_contents for cell in cells if _is_filled(cell)]


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty cell raises
    except ValueError:
        return False
    return True
