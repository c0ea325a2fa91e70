"""Connections to the Runtime API: what they write, how they wait, and how they notice their end."""

import asyncio

import pytest

from handler.runtime_api import Reply, RuntimeApiError
from handler.runtime_client import Connection, Line
from tests.handler.runtime_server import OK, reset, server


pytestmark = pytest.mark.anyio

LAST = b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
ASK = b"GET / HTTP/1.1\r\n\r\n"
MUCH = b"x" * 1024 * 1024


async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.readuntil(b"\r\n\r\n"):
        writer.write(OK)


def nothing() -> None: ...


async def test_a_line_keeps_its_connection_from_request_to_request() -> None:
    made = 0

    async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal made
        made += 1
        await answering(reader, writer)

    async with server(counting) as address:
        line = Line(address)
        replies = [await line.ask(ASK) for _ in range(3)]
        line.drop()

    assert replies == [Reply(202, {"content-length": "2"}, b"ok")] * 3
    assert made == 1


@pytest.mark.parametrize("last_words", [LAST, OK], ids=["said", "unsaid"])
async def test_a_line_connects_anew_where_its_connection_was_closed(last_words: bytes) -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(last_words)

    async with server(once) as address:
        line = Line(address)
        first = await line.ask(ASK)
        if last_words == OK:
            with pytest.raises(ConnectionResetError):
                await line.ask(ASK)
        second = await line.ask(ASK)
        line.drop()

    assert (first.status, second.status) == (202, 202)


async def test_nobody_there_is_an_os_error() -> None:
    async with server(answering) as address:
        pass

    with pytest.raises(OSError):  # noqa: PT011 - which one depends on the system
        await Line(address).ask(ASK)


async def test_a_reply_may_come_in_pieces() -> None:
    async def piecemeal(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for byte in OK:
            writer.write(bytes([byte]))
            await writer.drain()

    async with server(piecemeal) as address:
        line = Line(address)
        reply = await line.ask(ASK)
        line.drop()

    assert reply.body == b"ok"


async def test_a_reply_that_breaks_off_is_an_os_error() -> None:
    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK[:-1])

    async with server(broken) as address:
        with pytest.raises(ConnectionResetError):
            await Line(address).ask(ASK)


async def test_a_writer_waits_while_nothing_is_read_and_goes_on_after() -> None:
    may_read = asyncio.Event()
    got = bytearray()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await may_read.wait()
        while not got.endswith(b"end"):
            got.extend(await reader.read(1 << 20))
        writer.write(OK)

    async with server(slow) as address:
        connection = await Connection(address).open()
        await connection.begin(b"begin", nothing)
        writing = asyncio.create_task(write_until_it_waits(connection, may_read))
        written = await writing
        await connection.write(b"end")
        reply = await connection.reply()
        connection.close()

    assert reply.status == 202
    assert bytes(got) == b"begin" + MUCH * written + b"end"


async def test_a_write_that_is_cancelled_half_way_leaves_no_half_of_it() -> None:
    may_read = asyncio.Event()
    got = bytearray()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await may_read.wait()
        while not got.endswith(b"end"):
            got.extend(await reader.read(1 << 20))
        writer.write(OK)

    async with server(slow) as address:
        connection = await Connection(address).open()
        await connection.begin(b"begin", nothing)
        writing = asyncio.create_task(connection.write(MUCH * 5))
        await asyncio.sleep(0)
        writing.cancel()
        cancelled = (await asyncio.gather(writing, return_exceptions=True))[0]
        may_read.set()
        await connection.write(b"end")
        reply = await connection.reply()
        connection.close()

    assert isinstance(cancelled, asyncio.CancelledError)
    assert reply.status == 202
    assert bytes(got) == b"begin" + MUCH * 5 + b"end"


async def test_writes_that_wait_together_do_not_mix() -> None:
    may_read = asyncio.Event()
    got = bytearray()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await may_read.wait()
        while not got.endswith(b"end"):
            got.extend(await reader.read(1 << 20))
        writer.write(OK)

    pieces = [letter * 2_000_000 for letter in (b"a", b"b", b"c")]
    async with server(slow) as address:
        connection = await Connection(address).open()
        await connection.begin(b"", nothing)
        writing = [asyncio.create_task(connection.write(piece)) for piece in pieces]
        await asyncio.sleep(0)
        may_read.set()
        await asyncio.gather(*writing)
        await connection.write(b"end")
        await connection.reply()
        connection.close()

    assert bytes(got) == b"".join(pieces) + b"end"


async def write_until_it_waits(connection: Connection, then: asyncio.Event) -> int:
    """Write megabytes until one does not go through at once, then let the other side read."""
    written = 0
    while True:
        writing = asyncio.create_task(connection.write(MUCH))
        written += 1
        await asyncio.sleep(0)
        if not writing.done():
            then.set()
            await writing
            return written
        assert written < 64, "nothing ever waited"


async def test_a_reply_before_the_end_of_the_request_ends_the_writers_wait() -> None:
    answered = asyncio.Event()
    may_close = asyncio.Event()

    async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(5)
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        await may_close.wait()

    async with server(refusing) as address:
        connection = await Connection(address).open()
        await connection.begin(b"begin", answered.set)
        with pytest.raises(ConnectionResetError):
            await write_for_ever(connection)
        reply = await connection.reply()
        with pytest.raises(ConnectionResetError):
            await connection.write(b"more")
        connection.close()
        may_close.set()

    assert (reply.status, answered.is_set()) == (413, True)


async def write_for_ever(connection: Connection) -> None:
    while True:
        await connection.write(MUCH)


async def test_a_connection_that_is_cut_calls_back_while_nothing_is_written() -> None:
    async def cutting(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(5)

    async with server(cutting) as address:
        answered = asyncio.Event()
        connection = await Connection(address).open()
        await connection.begin(b"begin", answered.set)
        await answered.wait()
        with pytest.raises(ConnectionResetError):
            await connection.write(b"more")
        with pytest.raises(ConnectionResetError):
            await connection.reply()
        connection.close()


async def test_a_cut_ends_a_write_that_waits() -> None:
    begun = asyncio.Event()
    may_cut = asyncio.Event()

    async def cutting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(5)
        begun.set()
        await may_cut.wait()
        reset(writer)

    async with server(cutting) as address:
        connection = await Connection(address).open()
        await connection.begin(b"begin", nothing)
        await begun.wait()
        writing = asyncio.create_task(write_for_ever(connection))
        await asyncio.sleep(0)
        may_cut.set()
        with pytest.raises(ConnectionError):
            await writing
        connection.close()


async def test_closing_ends_a_write_that_waits() -> None:
    begun = asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with server(deaf) as address:
        connection = await Connection(address).open()
        await connection.begin(b"begin", nothing)
        await begun.wait()
        writing = asyncio.create_task(write_for_ever(connection))
        await asyncio.sleep(0)
        connection.close()
        with pytest.raises(ConnectionError):
            await writing
        with pytest.raises(ConnectionResetError):
            await connection.reply()


async def test_what_was_not_begun_is_neither_written_nor_answered() -> None:
    async with server(answering) as address:
        connection = await Connection(address).open()
        with pytest.raises(ConnectionResetError):
            await connection.write(ASK)
        with pytest.raises(ConnectionResetError):
            await connection.reply()
        assert not connection.is_answered
        assert await connection.ask(ASK) == Reply(202, {"content-length": "2"}, b"ok")
        connection.close()


async def test_a_peer_that_speaks_no_http_is_an_error_and_its_connection_is_not_kept() -> None:
    async def gibberish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"220 mail.example.com ESMTP\r\n\r\n")

    async with server(gibberish) as address:
        connection = await Connection(address).open()
        with pytest.raises(RuntimeApiError, match="does not speak HTTP"):
            await connection.ask(ASK)

    assert connection.is_closed


async def test_asking_can_be_cancelled_at_any_time() -> None:
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        assert await reader.read() == b""

    async with server(silent) as address:
        line = Line(address)
        asking = asyncio.create_task(line.ask(ASK))
        await asked.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        line.drop()


async def test_closing_one_connection_takes_nothing_from_the_next_that_gets_its_number() -> None:
    may_answer = asyncio.Event()

    async def patient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(5)
        await may_answer.wait()
        writer.write(OK)

    async with server(patient) as address:
        first = await Connection(address).open()
        await first.begin(b"begin", nothing)
        await asyncio.sleep(0)  # it waits for its reply now
        number = first._socket.fileno()
        first.close()
        second = await Connection(address).open()
        assert second._socket.fileno() == number
        asking = asyncio.create_task(second.ask(b"begin"))
        await asyncio.sleep(0)
        may_answer.set()
        reply = await asking
        second.close()

    assert reply.body == b"ok"


# --- connections that are opened ahead -----------------------------------------------------------


class Door:
    """A server that counts who comes in, and lets them go when it is told to."""

    def __init__(self) -> None:
        self.entered: asyncio.Queue[None] = asyncio.Queue()
        self.left: asyncio.Queue[None] = asyncio.Queue()
        self.may_close = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.entered.put_nowait(None)
        closing = asyncio.create_task(self.may_close.wait())
        ended = asyncio.create_task(reader.read())
        await asyncio.wait({closing, ended}, return_when=asyncio.FIRST_COMPLETED)
        closing.cancel()
        ended.cancel()
        self.left.put_nowait(None)


async def test_a_spare_connection_is_prepared_once_where_another_was_wanted_before() -> None:
    door = Door()
    async with server(door.serve) as address:
        line = Line(address)
        line.prepare()
        first = await line.another()
        await door.entered.get()
        first.close()
        line.prepare()
        line.prepare()
        await door.entered.get()
        second = await line.another()
        second.close()
        for _ in range(2):
            await door.left.get()

    assert door.entered.empty()


async def test_a_spare_connection_that_was_closed_meanwhile_is_made_again() -> None:
    door = Door()
    async with server(door.serve) as address:
        line = Line(address)
        (await line.another()).close()
        line.prepare()
        for _ in range(2):
            await door.entered.get()
        door.may_close.set()
        for _ in range(2):
            await door.left.get()
        door.may_close.clear()
        spare = line._spare
        assert spare is not None
        while not spare.is_stale:  # noqa: ASYNC110 - the system tells nobody
            await asyncio.sleep(0)
        connection = await line.another()
        await door.entered.get()

    assert connection is not spare
    assert spare.is_closed
    connection.close()


async def test_a_spare_connection_to_nobody_is_an_os_error_where_it_is_wanted() -> None:
    door = Door()
    async with server(door.serve) as address:
        line = Line(address)
        (await line.another()).close()
    line.prepare()

    with pytest.raises(OSError):  # noqa: PT011 - which one depends on the system
        await line.another()


async def test_dropping_a_line_closes_its_spare_connection_and_makes_no_more() -> None:
    door = Door()
    async with server(door.serve) as address:
        line = Line(address)
        (await line.another()).close()
        line.prepare()
        for _ in range(2):
            await door.entered.get()
        line.drop()
        line.prepare()
        for _ in range(2):
            await door.left.get()

    assert door.entered.empty()


async def test_an_address_that_is_none_is_an_os_error() -> None:
    with pytest.raises(OSError):  # noqa: PT011 - as above
        await Line("no such host:80").ask(ASK)
