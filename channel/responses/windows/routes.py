"""`/responses/input_tokens` and `/responses/compact`: what a context window costs, and a shorter one."""

from time import monotonic
from typing import Any, Final

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from channel.agent import TurnError
from channel.auth import Caller, caller_of
from channel.contract import PlainRoute
from channel.deadline import DEADLINE
from channel.http import ClientGoneError, JSONReply, error_reply, read_body, request_id
from channel.ports import Telemetry
from channel.responses.observing import Unobserved
from channel.responses.operations import Prepared, ResponseOperations
from channel.responses.protocol.requests import CreateResponse, parse
from channel.responses.protocol.response import Response, Status
from channel.responses.protocol.shapes import missing
from channel.responses.replies import NO_RETRY, failed
from channel.responses.run import FailedBeforeReplyError, TurnRun, facts_of
from channel.responses.windows.context import COMPACT, COUNT


_COUNTED: Final = (
    *("model", "instructions", "previous_response_id", "conversation", "tools", "tool_choice"),
    *("parallel_tool_calls", "text", "reasoning", "truncation"),
)
_COMPACTED: Final = (
    *("model", "instructions", "previous_response_id", "prompt_cache_key", "service_tier"),
)


def window_routes(operations: ResponseOperations, telemetry: Telemetry | None) -> list[PlainRoute]:
    """Return both routes; `telemetry` hears of a compaction as of any turn."""

    async def input_tokens(request: Request) -> JSONReply:
        body = await read_body(request.scope, request.receive)
        return await _counted(operations, caller_of(request.scope), body)

    return [
        PlainRoute("/responses/input_tokens", input_tokens, methods=["POST"]),
        PlainRoute("/responses/compact", _Compact(operations, telemetry), methods=["POST"]),
    ]


async def _counted(operations: ResponseOperations, caller: Caller, body: bytes) -> JSONReply:
    """Return the tokens of a request that is not run; all of its fields are optional."""
    request, items = parse(body, requires_input=False)
    request = _only(request, _COUNTED)
    prepared = await operations.look(caller, body, request, items, operation=COUNT)
    windows = operations.windows
    try:
        tokens = await windows.count(await windows.seen(prepared.asked))
    except TurnError as error:
        return failed(error)
    return JSONReply({"object": "response.input_tokens", "input_tokens": tokens})


class _Compact:
    """`POST /responses/compact`, as an ASGI app: a turn whose agent compacts, and which keeps nothing."""

    def __init__(self, operations: ResponseOperations, telemetry: Telemetry | None) -> None:
        self._operations = operations
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_at = monotonic()
        body = await read_body(scope, receive)
        prepared = await self._prepared(caller_of(scope), body)
        turn = self._operations.turn(
            prepared, request_id=request_id.get(), deadline=scope.get(DEADLINE)
        )
        outcome = "cancelled"
        try:
            await turn.run(Unobserved(), receive)
            outcome = str(turn.response.status)
            reply = await self._reply(turn, prepared)
        except FailedBeforeReplyError as error:
            outcome = "failed"
            reply = failed(error.cause)
        finally:
            if self._telemetry is not None:
                facts = facts_of(turn, outcome, started_at, is_stream=False)
                self._telemetry.turn_finished(facts)
        await reply.send_to(send)

    async def _prepared(self, caller: Caller, body: bytes) -> Prepared:
        request, items = parse(body, requires_input=False)
        if not request.model:
            raise missing("model")
        if not items and request.previous_response_id is None:
            raise missing("input")
        request = _only(request, _COMPACTED, store=False)
        return await self._operations.look(caller, body, request, items, operation=COMPACT)

    async def _reply(self, turn: TurnRun, prepared: Prepared) -> JSONReply:
        response = turn.response
        if response.status is Status.CANCELLED:
            raise ClientGoneError
        if response.error is not None:
            status, code = (504, "timeout") if turn.is_late else (500, response.error.code)
            return error_reply(response.error.message, status=status, code=code, headers=NO_RETRY)
        kept = await self._operations.windows.kept(prepared.asked)
        return JSONReply(_resource(response, kept))


def _resource(response: Response, kept: list[dict[str, Any]]) -> dict[str, Any]:
    """Return OpenAI's `response.compaction`: the messages that are kept, and the compaction item."""
    return {
        "id": response.id,
        "object": "response.compaction",
        "created_at": response.created_at,
        "output": [*kept, *response.output],
        "usage": response.usage,
    }


def _only(request: CreateResponse, names: tuple[str, ...], **given: Any) -> CreateResponse:
    """Return the request without the fields that the operation does not have."""
    return CreateResponse(**{name: getattr(request, name) for name in names}, **given)
