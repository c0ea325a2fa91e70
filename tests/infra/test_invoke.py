"""Jobs on Lambda: a real client against a server that answers as Lambda does."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import create_server
from threading import Thread
from typing import Any

import anyio
import pytest
from botocore.exceptions import ClientError, NoRegionError

from channel.ports import Job, StoreError
from infra.dynamodb.client import make_aws_client
from infra.invoke import MAX_PAYLOAD_BYTES, SelfInvoker, make_lambda_client


pytestmark = pytest.mark.anyio

JOB = Job("responses.background", {"response_id": "resp_1", "keys": {"user_key": "Grüße, 🌍"}})
SECRET = "the user's words"


class Lambda(ThreadingHTTPServer):
    """Notes what it is asked, and says what a test lets it say."""

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.status = 202
        self.answer: dict[str, str] | None = None
        self.error = ""
        self.asked: list[tuple[str, str | None, bytes]] = []
        self.connections = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def refuse(self, status: int, error: str) -> None:
        self.status, self.error = status, error
        self.answer = {"Message": SECRET, "Type": "User"}


class _Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Lambda

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        kind = self.headers["x-amz-invocation-type"]
        self.server.asked.append((self.path, kind, body))
        answer = b"" if self.server.answer is None else json.dumps(self.server.answer).encode()
        self.send_response(self.server.status)
        if self.server.error:
            self.send_header("x-amzn-errortype", self.server.error)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def aws() -> Iterator[Lambda]:
    with Lambda() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def invoker(endpoint: str, function: str = "agent:live") -> Iterator[SelfInvoker]:
    """Yield what invokes a function by a client that tries once; its connections are closed at the end."""
    client = make_aws_client("lambda", "eu-west-1", endpoint, attempts=1)
    try:
        yield SelfInvoker(lambda: client, function)
    finally:
        client.close()


async def test_a_job_is_an_asynchronous_invocation_of_the_function_itself(aws: Lambda) -> None:
    with invoker(aws.endpoint) as jobs:
        await jobs.start(JOB)

    ((path, kind, body),) = aws.asked
    assert path == "/2015-03-31/functions/agent%3Alive/invocations"
    assert kind == "Event"
    assert json.loads(body) == {"kind": JOB.kind, "payload": JOB.payload}


async def test_one_connection_serves_many_jobs(aws: Lambda) -> None:
    with invoker(aws.endpoint) as jobs:
        for _ in range(3):
            await jobs.start(JOB)

    assert (len(aws.asked), aws.connections) == (3, 1)


async def test_jobs_may_start_at_once(aws: Lambda) -> None:
    with invoker(aws.endpoint) as jobs:
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(jobs.start, JOB)

    assert len(aws.asked) == 8


async def test_the_client_is_made_at_the_first_job_and_kept(aws: Lambda) -> None:
    made: list[Any] = []

    def make() -> Any:
        made.append(make_lambda_client("eu-west-1", aws.endpoint))
        return made[-1]

    jobs = SelfInvoker(make, "agent")
    assert made == []
    for _ in range(2):
        await jobs.start(JOB)

    (client,) = made
    assert client.meta.endpoint_url == aws.endpoint
    client.close()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (403, "AccessDeniedException"),
        (404, "ResourceNotFoundException"),
        (413, "RequestTooLargeException"),
        (429, "TooManyRequestsException"),
        (500, "ServiceException"),
    ],
)
async def test_a_refusal_is_a_store_error_without_the_words_of_the_refusal(
    aws: Lambda, status: int, error: str
) -> None:
    aws.refuse(status, error)

    with invoker(aws.endpoint) as jobs, pytest.raises(StoreError) as raised:
        await jobs.start(JOB)

    assert SECRET not in str(raised.value)
    assert isinstance(raised.value.__cause__, ClientError)
    assert raised.value.__cause__.response["Error"]["Code"] == error
    assert len(aws.asked) == 1


@pytest.mark.parametrize("status", [200, 204])
async def test_another_answer_than_accepted_is_an_error(aws: Lambda, status: int) -> None:
    aws.status = status

    with invoker(aws.endpoint) as jobs, pytest.raises(StoreError, match="did not take"):
        await jobs.start(JOB)


async def test_a_lambda_that_cannot_be_reached_is_an_error() -> None:
    with create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    with (
        invoker(f"http://127.0.0.1:{port}") as jobs,
        pytest.raises(StoreError, match="could not be reached"),
    ):
        await jobs.start(JOB)


async def test_a_client_that_cannot_be_made_is_an_error_and_made_at_the_next_job(
    aws: Lambda,
) -> None:
    client = make_lambda_client(None, aws.endpoint)
    outcomes: list[Any] = [NoRegionError(), client]

    def make() -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    jobs = SelfInvoker(make, "agent")
    with pytest.raises(StoreError):
        await jobs.start(JOB)
    await jobs.start(JOB)

    assert len(aws.asked) == 1
    client.close()


async def test_a_job_may_be_as_large_as_lambda_takes_and_a_larger_one_is_not_sent(
    aws: Lambda,
) -> None:
    frame = len(b'{"kind":"k","payload":{"text":""}}')

    with invoker(aws.endpoint) as jobs:
        await jobs.start(Job("k", {"text": "x" * (MAX_PAYLOAD_BYTES - frame)}))
        with pytest.raises(StoreError, match="too large"):
            await jobs.start(Job("k", {"text": "x" * (MAX_PAYLOAD_BYTES - frame + 1)}))
        with pytest.raises(StoreError, match="too large"):
            await jobs.start(Job("k", {"text": "ü" * (MAX_PAYLOAD_BYTES - frame)}))

    ((_, _, body),) = aws.asked
    assert len(body) == MAX_PAYLOAD_BYTES
