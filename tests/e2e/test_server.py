"""The local server's socket, below what any ASGI test sees."""

import socket

from handler.local import listening


def test_a_reply_does_not_wait_for_the_acknowledgement_of_its_head() -> None:
    with listening(0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
