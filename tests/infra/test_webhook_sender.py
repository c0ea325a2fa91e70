"""One post: to the address that was checked and no other, within its time, whatever comes back."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Sequence

import pytest

from infra.webhook_sender import NoReplyError, WebhookSender, resolve
from infra.webhook_targets import TargetRefusedError
from tests.infra.receivers import (
    OK,
    Certificate,
    Posted,
    Receiver,
    listening,
    make_certificate,
    read_request,
    until_dropped,
)


pytestmark = pytest.mark.anyio

NAME = "hooks.example.test"
HEADERS = {"webhook-id": "evt_1"}
BODY = b'{"id":"evt_1"}'


class Names:
    """A resolver that knows these addresses, and counts who asks."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked: list[tuple[str, int]] = []

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        return self.addresses


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), NAME)


def local(*, connect_s: float = 3.0, whole_s: float = 10.0) -> WebhookSender:
    return WebhookSender(allow_private=True, connect_s=connect_s, whole_s=whole_s)


async def test_a_post_arrives_as_it_was_given() -> None:
    receiver = Receiver()

    async with listening(receiver) as port:
        status = await local().post(f"http://127.0.0.1:{port}/a%20b?c=d", HEADERS, BODY)

    assert status == 200
    assert receiver.got == [
        Posted(
            "POST /a%20b?c=d HTTP/1.1",
            {
                "host": f"127.0.0.1:{port}",
                "user-agent": "lambda-responses",
                "content-type": "application/json",
                "content-length": str(len(BODY)),
                "connection": "close",
                "webhook-id": "evt_1",
            },
            BODY,
        )
    ]


async def test_a_name_is_connected_to_by_the_address_it_resolved_to(
    certificate: Certificate,
) -> None:
    receiver, names = Receiver(), Names("127.0.0.1")
    sender = WebhookSender(allow_private=True, resolve=names, make_tls=certificate.client)

    async with listening(receiver, certificate.server()) as port:
        status = await sender.post(f"https://{NAME}:{port}/", HEADERS, BODY)

    assert status == 200
    assert receiver.got[0].headers["host"] == f"{NAME}:{port}"
    assert names.asked == [(NAME, port)]


async def test_a_certificate_must_be_of_the_name(certificate: Certificate) -> None:
    receiver = Receiver()
    sender = WebhookSender(
        allow_private=True, resolve=Names("127.0.0.1"), make_tls=certificate.client
    )

    async with listening(receiver, certificate.server()) as port:
        for host in ("other.example.test", "127.0.0.1"):
            with pytest.raises(ssl.SSLCertVerificationError):
                await sender.post(f"https://{host}:{port}/", HEADERS, BODY)

    assert receiver.got == []


async def test_a_certificate_that_nobody_vouches_for_is_refused(certificate: Certificate) -> None:
    receiver = Receiver()
    sender = WebhookSender(allow_private=True, resolve=Names("127.0.0.1"))

    async with listening(receiver, certificate.server()) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            await sender.post(f"https://{NAME}:{port}/", HEADERS, BODY)

    assert receiver.got == []


async def test_https_to_a_server_without_tls_fails() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(OK)

    async with listening(serve) as port:
        with pytest.raises(OSError):  # noqa: PT011 - which of its kinds depends on OpenSSL
            await local().post(f"https://127.0.0.1:{port}/", HEADERS, BODY)


async def test_a_server_that_never_agrees_on_tls_is_given_up() -> None:
    async def serve(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await until_dropped(reader)

    async with listening(serve) as port:
        with pytest.raises(TimeoutError):
            await local(connect_s=0.05).post(f"https://127.0.0.1:{port}/", HEADERS, BODY)


async def test_a_redirect_is_a_status_and_not_followed() -> None:
    elsewhere = Receiver()

    async with listening(elsewhere) as other:
        moved = b"HTTP/1.1 307 Moved\r\nlocation: http://127.0.0.1:%d/\r\n\r\n" % other
        async with listening(Receiver([moved])) as port:
            status = await local().post(f"http://127.0.0.1:{port}/", HEADERS, BODY)

    assert status == 307
    assert elsewhere.got == []


async def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, receiver = Receiver(), Receiver()

    async with listening(proxy) as other, listening(receiver) as port:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{other}")
        await local().post(f"http://127.0.0.1:{port}/", HEADERS, BODY)

    assert (len(proxy.got), len(receiver.got)) == (0, 1)


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK, 200),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", 101),
        (b"HTTP/1.0 204\r\n\r\n", 204),
        (b"HTTP/1.1 500 \n\n", 500),
        (b"HTTP/1.1 999 What\r\n", 999),
    ],
)
async def test_the_status_is_that_of_the_final_reply(reply: bytes, status: int) -> None:
    async with listening(Receiver([reply])) as port:
        assert await local().post(f"http://127.0.0.1:{port}/", HEADERS, BODY) == status


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/2 200\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 099 Low\r\n\r\n",
        b"HTTP/1.1 2000 High\r\n\r\n",
        b"\r\n\r\n",
        b"x" * 20_000 + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
        b"HTTP/1.1 100 Continue\r\n" + b"a: b\r\n" * 1000,
    ],
)
async def test_what_is_no_reply_is_an_error(reply: bytes) -> None:
    async with listening(Receiver([reply])) as port:
        with pytest.raises(NoReplyError):
            await local().post(f"http://127.0.0.1:{port}/", HEADERS, BODY)


async def test_a_long_reply_is_not_read() -> None:
    dropped = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
        except ConnectionError:
            dropped.set()

    async with listening(serve) as port:
        assert await local().post(f"http://127.0.0.1:{port}/", HEADERS, BODY) == 200
        await dropped.wait()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 2", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_server_that_is_too_slow_is_given_up_and_hung_up_on(said: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(said)
        await until_dropped(reader)

    async with listening(serve) as port:
        with pytest.raises(TimeoutError):
            await local(whole_s=0.05).post(f"http://127.0.0.1:{port}/", HEADERS, BODY)


async def test_a_post_that_is_cancelled_hangs_up() -> None:
    arrived = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        arrived.set()
        await until_dropped(reader)

    async with listening(serve) as port:
        posting = asyncio.create_task(local().post(f"http://127.0.0.1:{port}/", HEADERS, BODY))
        await arrived.wait()
        posting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await posting


async def test_where_nobody_listens_the_connection_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            await local().post(f"http://127.0.0.1:{taken.getsockname()[1]}/", HEADERS, BODY)


async def test_the_next_address_is_tried_where_one_cannot_be_reached() -> None:
    receiver = Receiver()

    async with listening(receiver) as port:
        sender = WebhookSender(allow_private=True, resolve=Names("127.0.0.9", "127.0.0.1"))
        status = await sender.post(f"http://{NAME}:{port}/", HEADERS, BODY)

    assert status == 200


async def test_a_host_without_an_address_is_an_error() -> None:
    def unknown(_host: str, _port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    with pytest.raises(NoReplyError):
        await WebhookSender(resolve=Names()).post(f"https://{NAME}/", HEADERS, BODY)
    with pytest.raises(socket.gaierror):
        await WebhookSender(resolve=unknown).post(f"https://{NAME}/", HEADERS, BODY)


@pytest.mark.parametrize(
    "addresses",
    [
        ("127.0.0.1",),
        ("169.254.169.254",),
        ("8.8.8.8", "10.0.0.1"),  # one of them is enough
        ("::ffff:127.0.0.1",),
        ("fe80::1%eth0",),
        ("nonsense",),
    ],
)
async def test_a_name_that_resolves_to_a_private_address_is_refused(
    addresses: tuple[str, ...],
) -> None:
    receiver = Receiver()

    async with listening(receiver) as port:
        sender = WebhookSender(resolve=Names(*addresses))
        with pytest.raises(TargetRefusedError):
            await sender.post(f"https://{NAME}:{port}/", HEADERS, BODY)

    assert receiver.got == []


async def test_a_name_that_rebinds_is_connected_to_where_it_was_checked(
    certificate: Certificate,
) -> None:
    """The second answer would be private; it is never asked for."""
    receiver = Receiver()
    answers = [["127.0.0.1"], ["127.0.0.9"]]
    sender = WebhookSender(
        allow_private=True,
        resolve=lambda _host, _port: answers.pop(0),
        make_tls=certificate.client,
    )

    async with listening(receiver, certificate.server()) as port:
        assert await sender.post(f"https://{NAME}:{port}/", HEADERS, BODY) == 200

    assert answers == [["127.0.0.9"]]


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "[::1]", "2130706433", "0x7f000001", "017700000001", "127.1"]
)
async def test_this_machine_is_refused_however_it_is_written(host: str) -> None:
    receiver = Receiver()

    async with listening(receiver) as port:
        with pytest.raises(TargetRefusedError, match="not a public address"):
            await WebhookSender().post(f"https://{host}:{port}/", HEADERS, BODY)

    assert receiver.got == []


async def test_plain_http_is_refused() -> None:
    with pytest.raises(TargetRefusedError, match="begins with https"):
        await WebhookSender(resolve=Names("8.8.8.8")).post("http://example.com/", {}, b"")


async def test_a_name_server_that_does_not_answer_holds_one_thread_for_each_host() -> None:
    answered, asked = threading.Event(), []

    def slow(host: str, _port: int) -> Sequence[str]:
        asked.append(host)
        if host == NAME:
            answered.wait(10)
        return ["127.0.0.1"]

    sender = WebhookSender(allow_private=True, resolve=slow)
    try:
        async with listening(Receiver()) as port:
            url = f"http://{NAME}:{port}/"
            waiting = [asyncio.create_task(sender.post(url, HEADERS, BODY)) for _ in range(50)]
            other = await sender.post(f"http://other.example.test:{port}/", HEADERS, BODY)
            ended = [each for each in waiting if each.done()]
            answered.set()
            statuses = await asyncio.gather(*waiting)
    finally:
        answered.set()

    assert (other, ended, statuses) == (200, [], [200] * 50)
    assert sorted(asked) == [NAME, "other.example.test"]


async def test_who_gives_a_lookup_up_takes_it_from_nobody_else() -> None:
    answered = threading.Event()

    def slow(_host: str, _port: int) -> Sequence[str]:
        answered.wait(10)
        return ["127.0.0.1"]

    sender = WebhookSender(allow_private=True, resolve=slow)
    try:
        async with listening(Receiver()) as port:
            url = f"http://{NAME}:{port}/"
            first, second = [asyncio.create_task(sender.post(url, HEADERS, BODY)) for _ in range(2)]
            await asyncio.sleep(0)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            answered.set()
            assert await second == 200
    finally:
        answered.set()


def test_names_are_resolved_by_the_system() -> None:
    assert "127.0.0.1" in resolve("localhost", 443)
