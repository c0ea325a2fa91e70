"""The pinned files: they agree with `pyproject.toml` and with each other, and name no registry."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


ROOT = Path(__file__).parent.parent
FILES = ("requirements.txt", "requirements-local.txt", "requirements-dev.txt")


def pinned(file: str) -> dict[str, set[str]]:
    """Return the versions by package; those for other platforms and versions count, too."""
    pins: dict[str, set[str]] = {}
    for line in (ROOT / file).read_text().splitlines():
        if not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            pins.setdefault(canonicalize_name(requirement.name), set()).add(specifier.version)
    return pins


def asked_for(file: str) -> list[Requirement]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    lines = list(project["project"]["dependencies"])
    if file != "requirements.txt":
        lines += project["project"]["optional-dependencies"]["local"]
    if file == "requirements-dev.txt":
        lines += groups["test"] + groups["lint"]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("file", FILES)
def test_every_name_of_the_project_file_is_pinned_within_its_range(file: str) -> None:
    pins = pinned(file)

    unmet = [
        str(requirement)
        for requirement in asked_for(file)
        if not any(map(requirement.specifier.contains, pins.get(requirement.name, ())))
    ]
    assert unmet == []


def test_the_zip_the_local_server_and_the_tests_run_the_same_versions() -> None:
    runtime, local, dev = map(pinned, FILES)

    assert runtime.items() <= local.items()
    assert local.items() <= dev.items()


@pytest.mark.parametrize("file", [*FILES, "pyproject.toml", "Makefile", ".ci/run"])
def test_no_committed_file_names_a_registry(file: str) -> None:
    text = (ROOT / file).read_text()

    assert "index-url" not in text.replace("--no-emit-index-url", "")
    assert "://" not in text
