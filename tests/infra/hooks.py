"""What tests hang into a botocore client: a meter of consumed capacity, and faults at a chosen call."""

from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any, Final, Self

from botocore.awsrequest import AWSResponse
from botocore.exceptions import ReadTimeoutError


class Meter:
    """Adds up the capacity units that the engine says it consumed, by operation."""

    def __init__(self, client: Any) -> None:
        self.units: dict[str, list[float]] = {}
        client.meta.events.register("before-parameter-build.dynamodb", _ask)
        client.meta.events.register("after-call.dynamodb", self._note)

    def take(self) -> dict[str, list[float]]:
        """Return what was consumed since the last time, each call's units by operation."""
        taken, self.units = self.units, {}
        return taken

    def _note(self, parsed: dict[str, Any], model: Any, **_: Any) -> None:
        if "ConsumedCapacity" in parsed:
            units = parsed["ConsumedCapacity"]["CapacityUnits"]
            self.units.setdefault(model.name, []).append(units)


def _ask(params: dict[str, Any], **_: Any) -> None:
    params["ReturnConsumedCapacity"] = "TOTAL"


class Died(BaseException):
    """The process has ended: nothing catches this."""


class Fault:
    """Strikes the call number `at` (from 0) of some clients, once, or for good where the process dies.

    An outage is for good as well.
    """

    def __init__(self, client: Any, kind: str, at: int, *others: Any) -> None:
        self.calls = 0
        self._at = at
        self._strike = getattr(self, f"_{kind}")
        self._is_final = kind.startswith("death")
        self._is_lasting = kind == OUTAGE
        self._lock = Lock()
        self._hooks = [
            (
                each.meta.events,
                f"before-send.{each.meta.service_model.service_id.hyphenize()}",
                partial(self._before_send, each._endpoint.http_session.send),
            )
            for each in (client, *others)
        ]

    def __enter__(self) -> Self:
        for events, name, hook in self._hooks:
            events.register_first(name, hook)
        return self

    def __exit__(self, *_: object) -> None:
        for events, name, hook in self._hooks:
            events.unregister(name, hook)

    @property
    def has_struck(self) -> bool:
        return self.calls > self._at

    def _before_send(self, send: Callable[[Any], Any], request: Any, **_: Any) -> Any:
        with self._lock:
            number, self.calls = self.calls, self.calls + 1
        if number == self._at or (self._is_lasting and number > self._at):
            return self._strike(send, request)
        if self._is_final and number > self._at:
            raise Died
        return None

    def _throttle(self, _send: Callable[[Any], Any], request: Any) -> AWSResponse:
        body = b'{"__type":"com.amazonaws.dynamodb#ProvisionedThroughputExceededException"}'
        return AWSResponse(request.url, 400, {}, _Raw(body))

    _outage = _throttle

    def _timeout(self, _send: Callable[[Any], Any], request: Any) -> None:
        raise ReadTimeoutError(endpoint_url=request.url)

    def _timeout_after_success(self, send: Callable[[Any], Any], request: Any) -> None:
        send(request)
        raise ReadTimeoutError(endpoint_url=request.url)

    def _death(self, _send: Callable[[Any], Any], _request: Any) -> None:
        raise Died

    def _death_after_success(self, send: Callable[[Any], Any], request: Any) -> None:
        send(request)
        raise Died


KINDS: Final = ("throttle", "timeout", "timeout_after_success", "death", "death_after_success")
OUTAGE: Final = "outage"


class _Raw:
    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self) -> list[bytes]:
        return [self._body]


def retry_at_once(client: Any) -> None:
    """Let the client repeat a failed call without the wait before it."""

    def wait(attempts: int, caught_exception: Exception | None, **_: Any) -> int | None:
        return 0 if caught_exception is not None and attempts == 1 else None

    client.meta.events.register_first("needs-retry.dynamodb", wait)
