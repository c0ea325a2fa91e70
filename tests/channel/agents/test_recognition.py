"""Whose an object is, and whether the framework is new enough."""

import tomllib
from pathlib import Path

import pytest

from channel.agents import recognition
from channel.agents.recognition import FRAMEWORKS, OLDEST, framework_of


ROOT = Path(__file__).parents[3]


class Streaming:
    def stream_async(self) -> None: ...


def test_an_object_is_known_by_what_it_has_and_a_class_is_not() -> None:
    framework = framework_of(Streaming())

    assert framework is not None
    assert framework.name == "Strands"
    assert framework_of(Streaming) is None
    assert framework_of(object()) is None


def test_a_release_that_is_too_old_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognition, "_version", lambda _: "0.1.3")

    with pytest.raises(TypeError, match=r"strands-agents is 0\.1\.3 here; 1\.62 or newer"):
        FRAMEWORKS[-2].adapt(Streaming(), None)


@pytest.mark.parametrize(
    ("older", "newer"), [("1.9", "1.10"), ("0.24", "0.24.1"), ("1.23.0rc1", "1.24")]
)
def test_releases_are_compared_by_their_numbers(older: str, newer: str) -> None:
    assert recognition._numbers(older) < recognition._numbers(newer)


def test_the_oldest_releases_are_those_of_the_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = dict(
        requirement.split(">=") for extra in project["optional-dependencies"].values() for requirement in extra
        if ">=" in requirement and ";" not in requirement
    )  # fmt: skip

    for packages in OLDEST.values():
        assert packages.items() <= asked.items()
