"""A workflow of Agent Framework for each turn: it keeps state, and so do its executors, which no two turns may share."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from agent_framework import FunctionExecutor


def maker_of(target: Any, fresh: Callable[[], Any] | None) -> Callable[[], Any]:
    """Return what makes a workflow like the target; raises `TypeError` where turns would share state.

    A factory must build its executors anew, too. A single workflow is copied, but for its agents and
    their clients, which keep nothing between runs.
    """
    if fresh is not None:
        _require_anew(target, fresh())
        return fresh
    if not hasattr(target, "executors"):
        msg = (
            f"the workflow {target.name!r} keeps state, and turns cannot share it; name its definition, "
            "which is what @workflow made, or a function that builds it"
        )
        raise TypeError(msg)
    shared = {id(each): each for each in _shared(target)}
    try:
        pristine = copy.deepcopy(target, dict(shared))
    except Exception as error:
        msg = (
            f"the workflow {target.name!r} cannot be copied ({error}), and turns cannot share it; name "
            "a function that builds it, such as `def agent(): return WorkflowBuilder(...).build()`"
        )
        raise TypeError(msg) from error
    return lambda: copy.deepcopy(pristine, dict(shared))


def agents_in(workflow: Any) -> list[Any]:
    """Return the agents that the executors of a workflow run, also of those inside of it."""
    return [each for each in _shared(workflow) if not hasattr(each, "get_response")]


def _shared(workflow: Any) -> Iterator[Any]:
    """Yield the agents and the chat clients that the executors have."""
    for executor in getattr(workflow, "executors", {}).values():
        for value in vars(executor).values():
            inner = getattr(value, "workflow", value)
            if hasattr(inner, "executors"):
                yield from _shared(inner)
            elif hasattr(value, "get_response") or _is_agent(value):
                yield value


def _is_agent(value: object) -> bool:
    return hasattr(value, "run") and hasattr(value, "create_session")


def _require_anew(one: Any, other: Any) -> None:
    if one is other:
        msg = (
            f"the factory gives the workflow {one.name!r} twice, and turns cannot share it; build it "
            "inside of the factory"
        )
        raise TypeError(msg)
    others = {id(each) for each in _executors(other)}
    for executor in _executors(one):
        # What a function is decorated into keeps nothing.
        if id(executor) in others and not isinstance(executor, FunctionExecutor):
            msg = (
                f"the workflows that the factory builds share the executor {executor.id!r}, which keeps "
                "state; make it inside of the factory"
            )
            raise TypeError(msg)


def _executors(workflow: Any) -> Iterator[Any]:
    for executor in getattr(workflow, "executors", {}).values():
        yield executor
        if hasattr(executor, "workflow"):
            yield from _executors(executor.workflow)
