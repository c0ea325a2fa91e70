"""Sessions of Agent Framework agents, and an agent of its own for each turn, so that turns share nothing."""

import copy
import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, TypeAlias

import msgspec
from agent_framework import AgentSession, HistoryProvider, Message, RawAgent

from channel.agent import Turn
from channel.agents.agent_framework.endings import watched
from channel.agents.agent_framework.seen import news


HistorySource: TypeAlias = Literal["host", "agent", "service"]
"""Where the history comes from: the host's transcript, the agent's own providers, the model's service."""

_HOST_HISTORY: Final = "in_memory"
"""The source that other providers take for the history unless they are told another one."""
_FORMAT: Final = "agent_framework"
_LOG: Final = logging.getLogger(__name__)


class Kept(msgspec.Struct, frozen=True):
    """What is kept from turn to turn: the session, what a run left open, and the mark of what was seen.

    That is there where somebody else than the host remembers what was said (`seen`).
    """

    session: dict[str, Any] = {}
    paused: list[dict[str, Any]] = []
    seen: dict[str, Any] = {}


class Gate(msgspec.Struct):
    """Whether a run was cut: then none of the agent's providers may take what it said for an answer."""

    is_cut: bool = False


class HostTranscript(HistoryProvider):
    """The host's history of one turn, in the place of a history provider of the agent's own."""

    def __init__(self, source_id: str, messages: Iterable[Message]) -> None:
        """Give these messages; what a run adds to them is gone with it."""
        super().__init__(source_id)
        self._messages = [*messages]

    async def get_messages(
        self,
        session_id: str | None,  # noqa: ARG002 - it is of one turn of one session
        *,
        state: dict[str, Any] | None = None,  # noqa: ARG002 - and keeps nothing there
        **_: Any,
    ) -> list[Message]:
        """Return the history; within a run also what was said in it, where that asks call by call."""
        return [*self._messages]

    async def save_messages(
        self,
        session_id: str | None,  # noqa: ARG002
        messages: Sequence[Message],
        *,
        state: dict[str, Any] | None = None,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Add to the history, for the rest of the run."""
        self._messages += messages


def kept_before(turn: Turn, source: HistorySource) -> Kept:
    """Return what an earlier turn kept, where it had the same source of history.

    A session that remembers what is no more in the host's history is not gone on with.
    """
    state = turn.state or {}
    if state.get(_FORMAT) != source:
        return Kept()
    session, seen = state.get("session") or {}, state.get("seen") or {}
    if source != "host" and news(turn, seen) is None:
        session = {}
    return Kept(session, state.get("paused") or [], seen)


def state_of(source: HistorySource, kept: Kept) -> dict[str, Any]:
    """Return what is to be kept, as JSON."""
    named = {"session": kept.session, "paused": kept.paused, "seen": kept.seen}
    return {_FORMAT: source, **{name: value for name, value in named.items() if value}}


def session_for(agent: Any, kept: Kept, response_id: str, source: HistorySource) -> AgentSession:
    """Return the session of a turn: the one that was kept, or a new one, named by its first response."""
    session_id = kept.session.get("session_id") or response_id or None
    service_id = None if source == "host" else kept.session.get("service_session_id")
    session: AgentSession = (
        agent.create_session(session_id=session_id)
        if service_id is None
        else agent.get_session(service_id, session_id=session_id)
    )
    if kept.session.get("state"):
        session.state = AgentSession.from_dict(kept.session).state
    return session


def saved(session: AgentSession, source: HistorySource) -> dict[str, Any]:
    """Return what is kept of a session: all of it but what is no JSON."""
    made = session.to_dict()
    state = {key: value for key, value in made["state"].items() if value and _is_json(key, value)}
    # With the host's history, a conversation that the service keeps is never gone on with.
    service_id = None if source == "host" else made["service_session_id"]
    named = {"service_session_id": service_id, "state": state}
    given = {name: value for name, value in named.items() if value}
    return {"session_id": made["session_id"], **given}


def providers_for(agent: Any, source: HistorySource) -> list[Any]:
    """Return the agent's context providers that take part in a run.

    With the host's history, those that load one do not: it would be a second one.
    """
    providers = getattr(agent, "context_providers", None) or ()
    return [provider for provider in providers if source != "host" or not _is_loading(provider)]


def agent_for_turn(
    agent: RawAgent[Any],
    source: HistorySource,
    providers: Sequence[Any],
    history: Iterable[Message],
    gate: Gate,
) -> RawAgent[Any]:
    """Return a copy of the agent for one turn, with these of its providers: a run adds others to it.

    The host's history comes where the agent's own came from. With the service's history, providers
    store, and load nothing. A `conversation_id` among its options is left out.
    """
    own = watched(agent)
    own.context_providers = [_gated(provider, gate, source) for provider in providers]
    # One conversation of the service for all callers would tell each of them what others said.
    own.default_options = {
        name: value for name, value in agent.default_options.items() if name != "conversation_id"
    }
    if source == "host":
        loading = [each for each in agent.context_providers if _is_loading(each)]
        place = agent.context_providers.index(loading[0]) if loading else 0
        transcript = HostTranscript(loading[0].source_id if loading else _HOST_HISTORY, history)
        own.context_providers.insert(place, transcript)
    return own


def _is_loading(provider: object) -> bool:
    return isinstance(provider, HistoryProvider) and provider.load_messages


def _gated(provider: Any, gate: Gate, source: HistorySource) -> Any:
    """Return a stand-in of the provider for one run, of the same kind, that stores nothing of a cut one."""
    stand_in = copy.copy(provider)
    if source == "service" and _is_loading(provider):
        stand_in.load_messages = False

    async def after_run(**given: Any) -> None:
        if not gate.is_cut:
            await provider.after_run(**given)

    vars(stand_in).update(before_run=provider.before_run, after_run=after_run)
    return stand_in


def _is_json(key: str, value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)  # strict, unlike msgspec: what comes back is the same
    except (TypeError, ValueError, RecursionError):
        _LOG.warning(
            "state of a session not kept: it is no JSON",
            extra={"source_id": key, "type": type(value).__name__},
        )
        return False
    return True
