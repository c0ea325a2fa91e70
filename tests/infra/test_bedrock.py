"""The client of Bedrock's runtime: how it is made, and that its streams end where another thread says so."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from botocore.exceptions import ClientError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.bedrock import READ_TIMEOUT_S, ModelStream, make_bedrock_client
from infra.settings import SettingsError
from tests.channel.agents.scripts import Say, Spend, Wait
from tests.models.bedrock_server import BedrockServer, Refuse


HELLO = (Say(("Hello.",)), Spend(7, 3))
PATIENCE_S = 10


@contextmanager
def connected(server: BedrockServer, region: str | None = None) -> Iterator[Any]:
    with server.in_thread():
        client = make_bedrock_client(region, server.endpoint, attempts=1)
        try:
            yield client
        finally:
            client.close()


def ask(client: Any) -> ModelStream:
    stream: ModelStream = client.converse_stream(
        modelId="a.b-v1:0", messages=[{"role": "user", "content": [{"text": "hi"}]}]
    )["stream"]
    return stream


def text_of(events: list[dict[str, Any]]) -> str:
    deltas = [
        event["contentBlockDelta"]["delta"] for event in events if "contentBlockDelta" in event
    ]
    return "".join(delta["text"] for delta in deltas)


def test_a_model_may_be_silent_for_as_long_as_a_function_lives() -> None:
    client = make_bedrock_client("eu-west-1")

    config = client.meta.config
    assert (config.read_timeout, config.connect_timeout) == (READ_TIMEOUT_S, 5)
    assert config.retries == {"mode": "standard", "total_max_attempts": 3}
    assert config.tcp_keepalive
    assert client.meta.region_name == "eu-west-1"


def test_a_region_is_needed_and_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    with pytest.raises(SettingsError, match="set AWS_REGION or BEDROCK_REGION"):
        make_bedrock_client(None)


def test_a_reply_is_read_to_its_end_and_its_connection_used_again() -> None:
    server = BedrockServer([HELLO, HELLO])
    with connected(server) as client:
        for _ in range(2):
            stream = ask(client)
            assert text_of([*stream]) == "Hello."
            stream.close()

    assert server.connections == 1


def test_a_stream_that_is_over_may_be_shut_down() -> None:
    with connected(BedrockServer([HELLO])) as client:
        stream = ask(client)
        assert text_of([*stream]) == "Hello."

        stream.shutdown()
        stream.close()
        stream.shutdown()


def test_an_error_in_place_of_a_stream_is_botocores() -> None:
    server = BedrockServer([(Refuse(403, "AccessDeniedException"),)])
    with connected(server) as client, pytest.raises(ClientError, match="AccessDeniedException"):
        ask(client)


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Return the context of a server that clients trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    begin, end = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, begin, end)
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    certified, secret = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certified.write_bytes(certificate.public_bytes(pem))
    secret.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certified, secret)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certified))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    return context


@pytest.mark.parametrize("is_secure", [False, True])
def test_another_thread_ends_a_read_that_waits(is_secure: bool, tls: ssl.SSLContext) -> None:
    server = BedrockServer([(Say(("Well, ",)), Wait())], tls=tls if is_secure else None)
    read: list[dict[str, Any]] = []
    has_spoken = Event()
    with connected(server, "eu-west-1") as client:
        stream = ask(client)

        def reading() -> None:
            with suppress(Exception):  # how it ends is no matter
                for event in stream:
                    read.append(event)
                    if text_of(read):
                        has_spoken.set()
            stream.close()

        thread = Thread(target=reading)
        thread.start()
        assert has_spoken.wait(PATIENCE_S)
        stream.shutdown()
        thread.join(PATIENCE_S)

        assert not thread.is_alive()
    assert text_of(read) == "Well, "
