"""Seals: they open for the keys that they were made for, and for nothing else."""

from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest

from channel.isolation import IsolationKeys
from channel.sealing import process_sealer, sealed, unsealed


pytestmark = pytest.mark.anyio

SECRET = b"s" * 32
ANN = IsolationKeys("ann")
DATA = b"What Ann said, " * 9 + "ü".encode()


def test_a_seal_opens_for_its_own_keys() -> None:
    text = sealed(SECRET, ANN, DATA)

    assert unsealed(SECRET, ANN, text) == DATA
    assert len(text) < len(DATA)
    assert text.isascii()


@pytest.mark.parametrize(
    "keys",
    [
        IsolationKeys("bob"),
        IsolationKeys("ann", "chat"),
        IsolationKeys("ann", ""),
        IsolationKeys(None, "ann"),
        IsolationKeys('ann",null'),
        IsolationKeys(),
    ],
)
def test_a_seal_does_not_open_for_other_keys(keys: IsolationKeys) -> None:
    assert unsealed(SECRET, keys, sealed(SECRET, ANN, DATA)) is None


def test_a_seal_of_another_secret_does_not_open() -> None:
    assert unsealed(b"t" * 32, ANN, sealed(SECRET, ANN, DATA)) is None


def test_no_changed_byte_opens() -> None:
    whole = urlsafe_b64decode(sealed(SECRET, ANN, b"{}"))

    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1
        assert unsealed(SECRET, ANN, urlsafe_b64encode(changed).decode()) is None


@pytest.mark.parametrize(
    "text", ["", "x", "gAAAA", "A" * 43, "A" * 44, "A" * 400, "ü" * 60, "\ud800", "\x00", "==="]
)
def test_what_is_no_seal_does_not_open(text: str) -> None:
    assert unsealed(SECRET, ANN, text) is None


def test_a_shortened_seal_does_not_open() -> None:
    text = sealed(SECRET, ANN, DATA)

    assert [unsealed(SECRET, ANN, text[:length]) for length in range(0, len(text), 4)] == [None] * (
        len(text) // 4
    )


async def test_each_process_has_a_secret_of_its_own() -> None:
    ours, theirs = process_sealer(), process_sealer()

    text = await ours.seal(ANN, DATA)

    assert await ours.open(ANN, text) == DATA
    assert await theirs.open(ANN, text) is None
