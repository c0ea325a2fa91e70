"""The operations behind the routes: what each asks of the protocol and of the store, in which order."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import msgspec
from msgspec import Struct

from channel.agent import accepted_options
from channel.auth import Caller
from channel.contract import (
    ChannelContext,
    ChannelIdentity,
    ChannelRequest,
    ChannelRunHook,
    ChannelSession,
    apply_run_hook,
)
from channel.deadline import Deadline
from channel.faults import HookError
from channel.isolation import IsolationKeys
from channel.ports import Branch, Clock, ResponseStore, StoredTurn
from channel.responses.protocol import ids, input as given_input
from channel.responses.protocol.errors import (
    RequestError,
    previous_response_not_found,
    response_not_found,
)
from channel.responses.protocol.items import Item
from channel.responses.protocol.requests import CreateResponse, parse, permitted_names
from channel.responses.protocol.response import Response, Status
from channel.responses.protocol.stream import ResponseStream, ToolPolicy
from channel.responses.run import TurnHooks, TurnRun


MAX_TURN_S: Final = 900.0
"""The longest that a turn can take on Lambda, in seconds."""
MAX_REFERENCES: Final = 128
"""Item references in one request that are looked up in storage; each costs a read."""

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
    response_id_factory: ResponseIdFactory | None


class Hold(Struct, frozen=True):
    """What a turn holds until it is stored: `release` lets it go, and `job` names it for a worker."""

    release: Callable[[], Awaitable[None]]
    job: dict[str, Any]


class _Entered(Struct, frozen=True):
    branch: Branch
    hold: Hold | None = None


class Prepared(Struct, frozen=True):
    """A request that can be run: checked, with ids, and with the history that it continues.

    `has_own_history` where a hook has changed what was loaded.
    """

    request: CreateResponse
    asked: ChannelRequest
    response: Response
    branch: Branch
    hold: Hold | None = None
    has_own_history: bool = False


class Page(Struct, frozen=True):
    """Which part of a list is asked for."""

    limit: int = 20
    order: str = "desc"
    after: str | None = None
    before: str | None = None


class ResponseOperations:
    """The operations of one channel over one store."""

    def __init__(
        self,
        context: ChannelContext,
        store: ResponseStore,
        options: ChannelOptions,
        clock: Clock,
    ) -> None:
        """Serve the context's target, keeping turns in the store."""
        self._context = context
        self._store = store
        self._options = options
        self._allowed = options.allowed_options | accepted_options(context.target)
        self._clock = clock

    async def create(
        self,
        caller: Caller,
        body: bytes,
        *,
        request_id: str,
        deadline: Deadline | None = None,
    ) -> tuple[CreateResponse, TurnRun]:
        """Check the request, load what it continues, and return the turn, ready to run.

        Raises `RequestError` before anything has happened, and `StoreError`.
        """
        prepared = await self.prepare(caller, body, deadline=deadline)
        return prepared.request, self.turn(prepared, request_id=request_id, deadline=deadline)

    async def prepare(
        self, caller: Caller, body: bytes, *, deadline: Deadline | None = None
    ) -> Prepared:
        """Check the request and load what it continues.

        Raises `RequestError` before anything has happened, and `StoreError`.
        """
        request, items = parse(body)
        if request.text is not None:
            self._require_offered(request.text)
        if request.background and not self._options.has_background:
            msg = "Unsupported parameter: 'background' is not offered by this server."
            raise RequestError(msg, param="background", code="unsupported_parameter")
        entered = await self._enter(caller, request, deadline)
        try:
            return await self._prepared(caller, body, request, items, entered)
        except BaseException:
            if entered.hold is not None:
                await entered.hold.release()
            raise

    async def _enter(
        self, caller: Caller, request: CreateResponse, deadline: Deadline | None
    ) -> _Entered:
        # The place where conversations are entered: `conversations.enter`, and a `Hold` for its
        # `leave`; `deadline` says how long a turn may take at most (None: `MAX_TURN_S`).
        del deadline
        previous = request.previous_response_id
        branch = await self._store.branch(caller.keys, previous)
        if branch is None:
            raise previous_response_not_found(previous or "")
        return _Entered(branch)

    async def _prepared(
        self,
        caller: Caller,
        body: bytes,
        request: CreateResponse,
        items: Sequence[Item],
        entered: _Entered,
    ) -> Prepared:
        branch = entered.branch
        history = history_of(branch.turns)
        kinds = {item["type"] for item in items}
        if given_input.REFERENCE in kinds:
            items = await self._dereferenced(caller, items, history)
        if history or kinds != {"message"}:
            given_input.require_paired_calls(history, items)
        _require_room(items)
        items = given_input.with_ids(items, branch.body, {item["id"] for item in history})
        response = self._initial(request, branch)
        asked = self._channel_request(caller, request, response, history, items)
        if self._options.run_hook is not None:
            asked = await self._hooked(self._options.run_hook, asked, branch, body)
        is_own = asked.history is not history
        return Prepared(request, asked, response, branch, entered.hold, is_own)

    async def input_items(self, caller: Caller, response_id: str, page: Page) -> dict[str, Any]:
        """Return a page of what a response was given: inherited history first, then its own input."""
        turns = await self._store.turns(caller.keys, response_id)
        if turns is None:
            if await self._store.get(caller.keys, response_id) is not None:
                msg = f"The history of response '{response_id}' has been deleted, or has expired."
                raise RequestError(msg, status=404)
            raise response_not_found(response_id)
        return list_page([*history_of(turns[:-1]), *turns[-1].input], page)

    def _require_offered(self, text: Mapping[str, Any]) -> None:
        """Refuse structured output from an agent that does not take `text`, rather than ignore it."""
        wanted = text["format"]["type"]
        if wanted != "text" and "text" not in self._allowed:
            msg = f"Unsupported value: 'text.format.type' {wanted!r} is not offered by this agent."
            raise RequestError(msg, param="text.format.type", code="unsupported_value")

    async def _dereferenced(
        self, caller: Caller, items: Sequence[Item], history: Sequence[Item]
    ) -> list[Item]:
        """Return the items with references replaced by what they name, in this tenant's own data."""
        references = [item for item in items if item["type"] == given_input.REFERENCE]
        known = {item["id"]: item for item in (*history, *items) if isinstance(item.get("id"), str)}
        known = {key: item for key, item in known.items() if item["type"] != given_input.REFERENCE}
        unknown = dict.fromkeys(item["id"] for item in references if item["id"] not in known)
        if len(unknown) > MAX_REFERENCES:
            msg = f"Too many item references: at most {MAX_REFERENCES} are looked up."
            raise RequestError(msg, param="input", code="invalid_value")
        for item_id in unknown:
            item = await self._store.item(caller.keys, item_id)
            if item is None:
                msg = f"Item with id '{item_id}' not found."
                raise RequestError(msg, param="input", status=404)
            known[item_id] = item
        return [
            known[item["id"]] if item["type"] == given_input.REFERENCE else item for item in items
        ]

    def _initial(self, request: CreateResponse, branch: Branch) -> Response:
        factory = self._options.response_id_factory
        given = msgspec.to_builtins(request)
        echoed = {name: value for name, value in given.items() if name in _ECHOED}
        if request.service_tier in (None, "", "auto"):
            echoed["service_tier"] = "default"
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
        continued = request.previous_response_id or caller.keys.chat_key
        who = request.safety_identifier or request.user
        attributes = {"response_id": response.id}
        if request.previous_response_id is not None:
            attributes["previous_response_id"] = request.previous_response_id
        return ChannelRequest(
            channel=self._options.name,
            operation="message.create",
            caller=caller,
            input=items,
            history=history,
            instructions=response.instructions,
            model=response.model,
            tools=response.tools,
            tool_choice=response.tool_choice,
            parallel_tool_calls=response.parallel_tool_calls,
            options=self._options_of(request) if self._allowed else {},
            session=ChannelSession(continued) if continued else None,
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
        if changed.caller != asked.caller:
            raise HookError("a run hook may not change the caller of a request")
        taken = {item["id"] for item in changed.history}
        return replace(changed, input=given_input.with_ids(changed.input, branch.body, taken))

    def hold(self, keys: IsolationKeys, job: dict[str, Any]) -> Hold:
        """Return what a turn holds by the name that a worker was given."""
        raise NotImplementedError  # conversations are to come

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
            tools=ToolPolicy(names, asked.parallel_tool_calls),
            shows_tools=self._options.shows_tools,
        )
        save = partial(self._store.save, asked.caller.keys, branch) if response.store else None
        return TurnRun(
            stream,
            partial(self._context.run_stream, asked),
            turn_input=asked.input,
            save=save,
            clock=self._clock,
            grace_s=None if is_committed else self._options.first_event_grace_s,
            hooks=self._options.hooks,
            request_id=request_id,
            deadline=deadline,
            release=prepared.hold.release if prepared.hold else None,
            is_background=response.background,
        )


_ECHOED: Final = frozenset(Response.__struct_fields__) & frozenset(
    CreateResponse.__struct_fields__
) - {"background", "model"}


def history_of(turns: Iterable[StoredTurn]) -> list[Item]:
    """Return the items of the turns in order, without the calls that a turn left unfinished."""
    history: list[Item] = []
    for turn in turns:
        history += turn.input
        history += [item for item in turn.response.output if not _is_unfinished_call(item)]
    return history


def list_page(items: Sequence[Item], page: Page) -> dict[str, Any]:
    """Return OpenAI's list object for a page; raises `RequestError` for a cursor that is not in it."""
    ordered = [*items] if page.order == "asc" else [*reversed(items)]
    start = _cursor(ordered, page.after, "after", 1, default=0)
    end = _cursor(ordered, page.before, "before", 0, default=len(ordered))
    data = ordered[start:end][: page.limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": start + len(data) < end,
    }


def _cursor(
    items: Sequence[Item], item_id: str | None, param: str, past: int, *, default: int
) -> int:
    if item_id is None:
        return default
    for position, item in enumerate(items):
        if item["id"] == item_id:
            return position + past
    raise RequestError(
        f"Invalid value for '{param}': no item of this list has that id.",
        param=param,
        code="invalid_value",
    )


def _is_unfinished_call(item: Item) -> bool:
    return item["type"] == "function_call" and item.get("status") == "incomplete"


def _require_room(items: Sequence[Mapping[str, Any]]) -> None:
    if len(items) >= ids.MAX_ITEMS // 2:
        msg = f"Too many items: a request may have at most {ids.MAX_ITEMS // 2 - 1}."
        raise RequestError(msg, param="input", code="invalid_value")
