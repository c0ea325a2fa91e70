"""A stand-in for the management API of an API Gateway WebSocket API: it notes what is posted."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote


MAX_MESSAGE_BYTES = 128 * 1024
_CONNECTIONS = "/responses/@connections/"


class ManagementApi:
    """What was posted to each connection, what was closed, and what is answered."""

    def __init__(self) -> None:
        self.posts: dict[str, list[bytes]] = defaultdict(list)
        self.closed: list[str] = []
        self.calls: list[str] = []
        self.answers: list[int] = []  # the next calls' statuses, before those below
        self.gone: set[str] = set()
        self.on_post: Callable[[str, bytes], None] | None = None
        self.endpoint = ""

    def status(self, connection_id: str, size: int) -> int:
        if self.answers:
            return self.answers.pop(0)
        if connection_id in self.gone:
            return 410
        return 413 if size > MAX_MESSAGE_BYTES else 200


_ERRORS = {
    410: "GoneException",
    413: "PayloadTooLargeException",
    429: "LimitExceededException",
    500: "InternalServerErrorException",
}


@contextmanager
def management_api() -> Iterator[ManagementApi]:
    """Serve a stand-in on a free port of 127.0.0.1."""
    api = ManagementApi()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"] or 0))
            connection_id, status = self._called(len(data))
            if status == 200:
                api.posts[connection_id].append(data)
                if api.on_post is not None:
                    api.on_post(connection_id, data)
            self._answer(status)

        def do_DELETE(self) -> None:
            connection_id, status = self._called(0)
            if status == 200:
                api.closed.append(connection_id)
                api.gone.add(connection_id)
            self._answer(204 if status == 200 else status)

        def _called(self, size: int) -> tuple[str, int]:
            path = unquote(self.path)
            assert path.startswith(_CONNECTIONS), path
            connection_id = path.removeprefix(_CONNECTIONS)
            api.calls.append(f"{self.command} {connection_id}")
            return connection_id, api.status(connection_id, size)

        def _answer(self, status: int) -> None:
            body = b"" if status in (200, 204) else json.dumps({"message": None}).encode()
            self.send_response(status)
            if status in _ERRORS:
                self.send_header("x-amzn-errortype", _ERRORS[status])
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    api.endpoint = f"http://127.0.0.1:{server.server_port}/responses"
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
