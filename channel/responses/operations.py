"""The operations behind the routes: what each asks of the protocol and of the store, in which order."""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from time import monotonic
from typing import Any, Final

import msgspec
from msgspec import Struct

from channel.agent import OPTION_NAMES, AgentEvent, accepted_options
from channel.auth import Caller
from channel.commands import COMMAND, RESET, Commands
from channel.contract import (
    CALLERS_TARGET,
    STATE,
    ChannelCommand,
    ChannelContext,
    ChannelRequest,
    ChannelRunHook,
    ChannelSession,
    SessionMode,
)
from channel.conversations import ConversationStore
from channel.deadline import Deadline
from channel.delivery import Route
from channel.hooks import apply_run_hook
from channel.isolation import IsolationKeys
from channel.ports import (
    Branch,
    Clock,
    HistoryTooLargeError,
    ResponseStore,
    Sealer,
)
from channel.responses.conversations.turns import ConversationTurns, Hold
from channel.responses.delivery import TurnDeliveries, TurnDelivery
from channel.responses.history import history_of, state_after
from channel.responses.paging import Page, list_page
from channel.responses.protocol import ids, input as given_input
from channel.responses.protocol.errors import (
    RequestError,
    history_too_large,
    previous_response_not_found,
    response_not_found,
)
from channel.responses.protocol.items import Item, message
from channel.responses.protocol.requests import CreateResponse, parse, permitted_names
from channel.responses.protocol.response import Response, ResponseConversation, Status
from channel.responses.protocol.stream import ResponseStream, ToolPolicy
from channel.responses.protocol.window import COMPACTION
from channel.responses.references import References
from channel.responses.run import Save, TurnHooks, TurnRun
from channel.responses.sessions import SessionTurns
from channel.responses.sockets.local_turns import LocalChain, LocalTurns
from channel.responses.windows.compaction import Compactor
from channel.responses.windows.context import (
    CONTEXT_MANAGEMENT,
    COUNT,
    CREATE,
    ContextWindows,
    StartAgent,
)
from channel.sessions import FoundSession, SessionStore, session_required, session_too_large
from channel.targets import ChannelIdentity, ResponseTarget


WARM_UP: Final = "message.warm_up"
"""The operation of a `ChannelRequest` that the agent does not see: it is there to be continued."""
BEGIN_S: Final = 60.0
"""Seconds that it may take to begin a background turn."""
MAX_TURN_S: Final = 900.0
"""The longest that a turn can take on Lambda, in seconds."""
QUEUE_S: Final = 1800.0
"""Seconds that a turn may wait for its worker; longer than Lambda keeps the event (the template's)."""

ResponseIdFactory = Callable[[str | None], str]
"""Makes a response id; gets the `previous_response_id`, or None, as a hint where to co-locate."""


class ChannelOptions(Struct, frozen=True, kw_only=True):
    """What the owner of a Responses channel decided."""

    name: str
    model: str
    allowed_options: frozenset[str]
    shows_tools: bool
    first_event_grace_s: float
    run_hook: ChannelRunHook | None
    hooks: TurnHooks
    has_background: bool
    sealer: Sealer
    response_id_factory: ResponseIdFactory | None
    session_mode: SessionMode = "auto"
    commands: Mapping[str, ChannelCommand] = {}


def option_names(given: Collection[str]) -> frozenset[str]:
    """Return the `allowed_options` of a channel; raises `ValueError` for a name that is none."""
    unknown = sorted(set(given) - OPTION_NAMES)
    if unknown:
        msg = f"allowed_options has {unknown}; the caller options are {sorted(OPTION_NAMES)}"
        raise ValueError(msg)
    return frozenset(given)


class _Entered(Struct, frozen=True, gc=False):
    branch: Branch
    hold: Hold | None = None
    carries_history: bool = False
    session_key: str | None = None
    """Of the session whose head it is after, where the request itself named nothing to continue."""
    is_beside: bool = False
    """Whether it is a command's, without the history after that head, which is too large."""


class Prepared(Struct, frozen=True, gc=False):
    """A request that can be run: checked, with ids, and with the history that it continues.

    `has_own_history` where a hook has changed what was loaded. `carried` is history that is kept
    with the turn, since no stored turn holds it; `local` keeps the turn where it is not stored.
    `session` is the one whose head the turn becomes, once it is stored. `route` is where the reply of
    a background turn goes.
    """

    request: CreateResponse
    asked: ChannelRequest
    response: Response
    branch: Branch
    hold: Hold | None = None
    has_own_history: bool = False
    local: LocalTurns | None = None
    carried: Sequence[Item] = ()
    route: Route | None = None
    session: FoundSession | None = None


class ResponseOperations:
    """The operations of one channel over one store."""

    def __init__(
        self,
        context: ChannelContext,
        store: ResponseStore,
        options: ChannelOptions,
        clock: Clock,
        conversations: ConversationStore | None = None,
        *,
        sessions: SessionStore | None = None,
    ) -> None:
        """Serve the context's target, keeping turns in the store; None offers no conversations.

        With `sessions`, a request that names a chat, and nothing to continue, goes on where that was.
        """
        self._conversations = ConversationTurns(conversations, clock)
        self.sessions = SessionTurns(sessions) if sessions is not None else None
        self._context = context
        self._store = store
        self._options = options
        self._allowed = options.allowed_options | accepted_options(context.target)
        self._clock = clock
        compactor = Compactor(context, options.sealer, options.hooks.transform)
        self.windows = ContextWindows(context, compactor)
        self.references = References(store, self.windows)
        self.deliveries = TurnDeliveries(context.deliveries, options.name)
        self.commands = Commands(context, options.commands) if options.commands else None

    async def prepare(
        self,
        caller: Caller,
        body: bytes,
        *,
        deadline: Deadline | None = None,
        local: LocalTurns | None = None,
        generates: bool = True,
    ) -> Prepared:
        """Check the request and load what it continues, which `local` may know alone.

        Without `generates` its turn says nothing, and needs no input. Raises `RequestError` before
        anything has happened, and `StoreError`.
        """
        request, items = parse(body, requires_input=generates)
        if request.text is not None:
            self._require_offered(request.text)
        if request.background and not self._options.has_background:
            msg = "Unsupported parameter: 'background' is not offered by this server."
            raise RequestError(msg, param="background", code="unsupported_parameter")
        self._require_session(caller, request)
        target = await self.deliveries.chosen(caller, request.response_target)
        entered, session = None, None
        try:
            if self.sessions is not None:
                session = await self.sessions.found(caller.keys, request)
            if session is not None:
                request, entered = await self._after_head(caller, request, items, session, local)
            entered = entered or await self._enter(caller, request, deadline, local)
        except HistoryTooLargeError as error:
            raise history_too_large(_continued_param(request)) from error
        operation = CREATE if generates else WARM_UP
        try:
            prepared = await self._prepared(
                caller, body, request, items, entered, operation=operation, target=target
            )
            prepared = self._in_session(prepared, entered, session)
            return msgspec.structs.replace(prepared, local=local) if local else prepared
        except BaseException:
            if entered.hold is not None:
                await entered.hold.release()
            raise

    async def _after_head(
        self,
        caller: Caller,
        request: CreateResponse,
        items: Sequence[Item],
        session: FoundSession,
        local: LocalTurns | None = None,
    ) -> tuple[CreateResponse, _Entered | None]:
        """Return a request as if it had named the head of its session, and the place after that.

        None where it names what it continues, or where there is nothing any more to go on with. A
        command goes beside a head whose history is too large.
        """
        head = session.response_id
        if head is None or request.previous_response_id is not None:
            return request, None
        try:
            branch = await self._store.branch(caller.keys, head)
        except HistoryTooLargeError as error:
            if not self._is_command(caller, items, request.text):
                raise self._session_too_large(caller) from error
            place = await self._continued(caller, request)
            return request, _Entered(place, session_key=session.key, is_beside=True)
        if branch is None:
            return request, None
        if local is not None:
            await local.chain(head)  # which is stored: it notes what the turn follows
        after_head = msgspec.structs.replace(request, previous_response_id=head)
        return after_head, _Entered(branch, session_key=session.key)

    def _in_session(
        self, prepared: Prepared, entered: _Entered, session: FoundSession | None
    ) -> Prepared:
        """Return what is prepared with the session whose head it moves, if it moves any.

        What is beside the head moves nothing, and is refused where a hook has made a message of it.
        """
        asked = prepared.asked
        is_command = asked.operation == COMMAND
        if entered.is_beside and not is_command:
            raise self._session_too_large(asked.caller)
        if session is None or entered.is_beside or not _has_session(asked):
            return prepared
        session = msgspec.structs.replace(session, forgets_itself=is_command)
        return msgspec.structs.replace(prepared, session=session)

    def _session_too_large(self, caller: Caller) -> RequestError:
        reset = [message("user", f"/{RESET.name}")]
        return session_too_large(has_reset=self._is_command(caller, reset))

    def _is_command(
        self, caller: Caller, items: Sequence[Item], text: Mapping[str, Any] | None = None
    ) -> bool:
        return self.commands is not None and self.commands.found(caller, items, text) is not None

    async def _enter(
        self,
        caller: Caller,
        request: CreateResponse,
        deadline: Deadline | None,
        local: LocalTurns | None,
    ) -> _Entered:
        if request.conversation is None and local is None:
            return _Entered(await self._continued(caller, request))
        if (conversation := request.conversation_id) is not None:
            limit_s = _longest_s(request, deadline)
            return _Entered(*await self._conversations.enter(caller.keys, conversation, limit_s))
        previous = request.previous_response_id
        chain = await local.chain(previous) if local and previous is not None else None
        if chain is not None:
            return await self._after(caller, request, chain)
        return _Entered(await self._continued(caller, request))

    async def _after(self, caller: Caller, request: CreateResponse, chain: LocalChain) -> _Entered:
        """Return the place after turns that are not stored; a turn that is, is stored with all of them."""
        is_stored = request.store is not False
        before = await self._store.branch(caller.keys, chain.after)
        place = before
        if is_stored and chain.after is not None:
            place = await self._store.branch(caller.keys, None)  # the beginning of a thread
        if before is None or place is None:
            raise previous_response_not_found(request.previous_response_id or "")
        branch = Branch(place.body, (*before.turns, *chain.turns), place.place)
        return _Entered(branch, carries_history=is_stored)

    async def look(
        self,
        caller: Caller,
        body: bytes,
        request: CreateResponse,
        items: Sequence[Item],
        *,
        operation: str,
    ) -> Prepared:
        """Check a request for an operation that keeps nothing and holds nothing.

        Raises `RequestError` and `StoreError`.
        """
        if request.text is not None:
            self._require_offered(request.text)
        if operation != COUNT:
            self._require_session(caller, request)
        target = await self.deliveries.chosen(caller, request.response_target)
        entered = None
        try:
            if self.sessions is not None and operation == COUNT:
                # What the same request would be given: a compaction has what it names, and no more.
                session = await self.sessions.found(caller.keys, request)
                if session is not None:
                    request, entered = await self._after_head(caller, request, items, session)
            entered = entered or _Entered(await self._continued(caller, request))
        except HistoryTooLargeError as error:
            raise history_too_large(_continued_param(request)) from error
        return await self._prepared(
            caller, body, request, items, entered, operation=operation, target=target
        )

    async def _continued(self, caller: Caller, request: CreateResponse) -> Branch:
        """Return the history that a request names, without entering anything."""
        previous = request.previous_response_id
        branch = await self._store.branch(caller.keys, previous)
        if branch is None:
            raise previous_response_not_found(previous or "")
        if (conversation := request.conversation_id) is not None:
            branch = await self._conversations.look(caller.keys, conversation, branch)
        return branch

    async def _prepared(
        self,
        caller: Caller,
        body: bytes,
        request: CreateResponse,
        items: Sequence[Item],
        entered: _Entered,
        *,
        operation: str,
        target: ResponseTarget | None,
    ) -> Prepared:
        branch = entered.branch
        history = history_of(branch.turns)
        kinds = {item["type"] for item in items}
        if not _RESOLVED.isdisjoint(kinds):
            items = await self.references.resolved(caller.keys, items, history)
        has_open_call = False
        if history or kinds != {"message"}:
            open_calls, stray = given_input.unpaired_calls([*history, *items])
            has_open_call = bool(open_calls)
            command = self._command(operation, caller, request, items) if open_calls else None
            if stray or (open_calls and not (command and command.resets)):
                given_input.require_paired_calls(history, items)
        _require_room(items)
        items = given_input.with_ids(items, branch.body, {item["id"] for item in history})
        response = self._initial(request, branch)
        asked = self._channel_request(caller, request, response, history, items)
        asked.operation = operation
        if entered.session_key is not None:  # the head is where the session is, and not its name
            asked.session = ChannelSession(entered.session_key)
        if target is not None:
            asked.response_target = target
            asked.attributes = {**asked.attributes, CALLERS_TARGET: True}
        if self._options.run_hook is not None and operation != COUNT:  # which runs nothing
            asked = await self._hooked(self._options.run_hook, asked, branch, body)
        command = self._command(operation, caller, request, asked.input)
        if command is not None:
            asked.operation = COMMAND
        if has_open_call and not (command and command.resets):  # a hook has made it something else
            given_input.require_paired_calls(asked.history, asked.input)
        return Prepared(
            request,
            asked,
            response,
            branch,
            entered.hold,
            has_own_history=asked.history is not history,
            carried=history if entered.carries_history else (),
        )

    async def input_items(self, caller: Caller, response_id: str, page: Page) -> dict[str, Any]:
        """Return a page of what a response was given: inherited history first, then its own input."""
        try:
            turns = await self._store.turns(caller.keys, response_id)
        except HistoryTooLargeError as error:
            raise history_too_large(None) from error
        if turns is None:
            if await self._store.get(caller.keys, response_id) is not None:
                msg = f"The history of response '{response_id}' has been deleted, or has expired."
                raise RequestError(msg, status=404)
            raise response_not_found(response_id)
        return list_page([*history_of(turns[:-1]), *turns[-1].input], page)

    def _command(
        self, operation: str, caller: Caller, request: CreateResponse, items: Sequence[Item]
    ) -> ChannelCommand | None:
        if self.commands is None or operation != CREATE:
            return None
        return self.commands.found(caller, items, request.text)

    def _require_session(self, caller: Caller, request: CreateResponse) -> None:
        if self._options.session_mode == "required" and not _session_key(caller, request):
            raise session_required()

    def _require_offered(self, text: Mapping[str, Any]) -> None:
        """Refuse structured output from an agent that does not take `text`, rather than ignore it."""
        wanted = text["format"]["type"]
        if wanted != "text" and "text" not in self._allowed:
            msg = f"Unsupported value: 'text.format.type' {wanted!r} is not offered by this agent."
            raise RequestError(msg, param="text.format.type", code="unsupported_value")

    def _initial(self, request: CreateResponse, branch: Branch) -> Response:
        factory = self._options.response_id_factory
        given = msgspec.to_builtins(request)
        echoed = {name: value for name, value in given.items() if name in _ECHOED}
        if request.service_tier in (None, "", "auto"):
            echoed["service_tier"] = "default"
        if (conversation := request.conversation_id) is not None:
            echoed["conversation"] = ResponseConversation(conversation)
        return Response(
            id=factory(request.previous_response_id) if factory else ids.response_id(branch.body),
            created_at=int(self._clock()),
            model=request.model or self._options.model,
            status=Status.QUEUED if request.background else Status.IN_PROGRESS,
            background=bool(request.background),
            **echoed,
        )

    def _channel_request(
        self,
        caller: Caller,
        request: CreateResponse,
        response: Response,
        history: Sequence[Item],
        items: Sequence[Item],
    ) -> ChannelRequest:
        conversation = request.conversation_id
        has_session = self._options.session_mode != "disabled"
        session_key = _session_key(caller, request) if has_session else None
        who = request.safety_identifier or request.user
        attributes: dict[str, Any] = {"response_id": response.id}
        if request.previous_response_id is not None:
            attributes["previous_response_id"] = request.previous_response_id
        if conversation is not None:
            attributes["conversation_id"] = conversation
        if request.context_management:
            attributes[CONTEXT_MANAGEMENT] = request.context_management
        return ChannelRequest(
            channel=self._options.name,
            operation=CREATE,
            caller=caller,
            input=items,
            history=history,
            instructions=response.instructions,
            model=response.model,
            tools=response.tools,
            tool_choice=response.tool_choice,
            parallel_tool_calls=response.parallel_tool_calls,
            options=self._options_of(request) if self._allowed else {},
            session=ChannelSession(session_key) if session_key else None,
            session_mode=self._options.session_mode,
            metadata=response.metadata,
            attributes=attributes,
            stream=bool(request.stream),
            identity=ChannelIdentity(self._options.name, who) if who else None,
        )

    def _options_of(self, request: CreateResponse) -> dict[str, Any]:
        # Copies, like those of the host: the response echoes the same values.
        given = msgspec.json.decode(msgspec.json.encode(request))
        return {name: given[name] for name in self._allowed if name in given}

    async def _hooked(
        self, hook: ChannelRunHook, asked: ChannelRequest, branch: Branch, body: bytes
    ) -> ChannelRequest:
        """Return what the hook made of the request; new input items get ids like those before."""
        changed = await apply_run_hook(
            hook,
            asked,
            target=self._context.target,
            protocol_request=msgspec.json.decode(body),
        )
        if changed.lacks_session:
            raise session_required()
        if changed.response_target != asked.response_target:
            changed = self.deliveries.aimed(hook, changed)
        taken = {item["id"] for item in chain(asked.history, changed.history)}
        given = _moved(changed.input, asked.input, branch.body)
        return replace(changed, input=given_input.with_ids(given, branch.body, taken))

    async def has_turn(self, keys: IsolationKeys, conversation_id: str, response_id: str) -> bool:
        """Return whether a turn is in a conversation, also one whose response is not stored."""
        try:
            found = await self._conversations.look(keys, conversation_id, Branch(""))
        except RequestError:  # there is no such conversation
            return False
        except HistoryTooLargeError:  # nobody can tell, and nothing must be there twice
            return True
        return any(turn.response.id == response_id for turn in found.turns)

    def hold(self, keys: IsolationKeys, job: dict[str, Any]) -> Hold:
        """Return what a turn holds by the name that a worker was given."""
        return self._conversations.hold(keys, job)

    def turn(
        self,
        prepared: Prepared,
        *,
        request_id: str,
        deadline: Deadline | None = None,
        is_committed: bool = False,
    ) -> TurnRun:
        """Return the turn of a request, ready to run.

        With `is_committed` the reply has begun already: the agent's first event is not waited for.
        """
        asked, response, branch = prepared.asked, prepared.response, prepared.branch
        tools = asked.tools
        names = permitted_names(tools, asked.tool_choice) if tools else frozenset[str]()
        stream = ResponseStream(
            response,
            body=branch.body,
            position=len(asked.input),
            tools=ToolPolicy(names, asked.parallel_tool_calls, response.max_tool_calls),
            shows_tools=self._options.shows_tools,
        )
        save: Save | None = prepared.local.keep if prepared.local else None
        if response.store or prepared.hold is not None:  # a conversation keeps all of its turns
            save = partial(self._store.save, asked.caller.keys, branch)
            # The worker of a background turn moves the head itself: its job may be tried again.
            if prepared.session is not None and self.sessions is not None:
                save = self.sessions.saving(asked.caller.keys, prepared.session, save)
        if (state := state_after(branch.turns)) is not None:
            asked = replace(asked, attributes={**asked.attributes, STATE: state})
            if prepared.carried:
                stream.state = state  # the turns that kept it are kept by this one now
        start = self.windows.start(asked, truncation=response.truncation)
        return TurnRun(
            stream,
            start if asked.operation == CREATE else self._own_start(asked, start),
            turn_input=[*prepared.carried, *asked.input] if prepared.carried else asked.input,
            save=save,
            clock=self._clock,
            grace_s=None if is_committed else self._options.first_event_grace_s,
            hooks=self._options.hooks,
            request_id=request_id,
            deadline=deadline,
            release=prepared.hold.release if prepared.hold else None,
            is_background=response.background,
            delivery=self._delivery(prepared),
        )

    def _delivery(self, prepared: Prepared) -> TurnDelivery | None:
        """Return what takes the reply elsewhere; of a background turn it was opened when that was begun."""
        if prepared.response.background:
            route = prepared.route
            return None if route is None else self.deliveries.reopened(prepared.asked, route)
        return self.deliveries.of(prepared.asked)

    def _own_start(self, asked: ChannelRequest, start_agent: StartAgent) -> StartAgent:
        """Return what is run in place of the agent, or the agent's own start."""
        if asked.operation == WARM_UP:
            return _say_nothing
        if asked.operation == COMMAND and self.commands is not None:
            # Whose it is is asked when the turn runs: a failure of that is the turn's, which ends.
            return partial(self.commands.start, asked, start_agent)
        return start_agent


async def _say_nothing() -> AsyncIterator[AgentEvent]:
    """Be the agent of a warm-up."""
    nothing: tuple[AgentEvent, ...] = ()
    for event in nothing:
        yield event


_RESOLVED: Final = frozenset({given_input.REFERENCE, COMPACTION})
_ECHOED: Final = frozenset(Response.__struct_fields__) & frozenset(
    CreateResponse.__struct_fields__
) - {"background", "conversation", "model"}


def _longest_s(request: CreateResponse, deadline: Deadline | None) -> float:
    """Return the seconds after which a turn of the request is over, whatever happens."""
    if request.background:
        return BEGIN_S  # until it is begun, which takes its own time
    return deadline.ends_at + deadline.margin_s - monotonic() if deadline else MAX_TURN_S


def _session_key(caller: Caller, request: CreateResponse) -> str | None:
    return request.previous_response_id or request.conversation_id or caller.keys.chat_key


def _has_session(asked: ChannelRequest) -> bool:
    """Return whether a hook has left the request its session."""
    return asked.session is not None and asked.session_mode != "disabled"


def _continued_param(request: CreateResponse) -> str:
    return "previous_response_id" if request.conversation is None else "conversation"


def _moved(items: Sequence[Item], before: Sequence[Item], body: str) -> list[Item]:
    """Return the items without ids that were made here: they name places, and a hook may move items.

    Else one of them could be that of another item, or of what the agent will say.
    """
    made = {
        item["id"]
        for index, item in enumerate(before)
        if item["id"] == ids.item_id(item["type"], body, index)
    }
    return [
        {name: value for name, value in item.items() if name != "id"}
        if isinstance(item.get("id"), str) and item["id"] in made
        else item
        for item in items
    ]


def _require_room(items: Sequence[Mapping[str, Any]]) -> None:
    if len(items) >= ids.MAX_ITEMS // 2:
        msg = f"Too many items: a request may have at most {ids.MAX_ITEMS // 2 - 1}."
        raise RequestError(msg, param="input", code="invalid_value")
