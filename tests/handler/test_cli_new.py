"""The command `new`: what it writes, what it says, and what it leaves alone."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from packaging.requirements import Requirement

from handler.cli import main
from handler.new import FRAMEWORKS, files_of


ROOT = Path(__file__).parents[2]
NAMES = ["README.md", "__init__.py", "assistant.py", "requirements.txt", "test_assistant.py"]
SCREEN = 60  # lines


def new(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["new", *arguments])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_it_writes_an_agent_of_every_framework(tmp_path: Path, framework: str) -> None:
    result = new(str(tmp_path / "trial"), "--framework", framework)

    written = tmp_path / "trial" / "agent"
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in written.iterdir()) == NAMES
    assert {path.name: path.read_text() for path in written.iterdir()} == files_of(framework)
    assert len(files_of(framework)["assistant.py"].splitlines()) <= SCREEN
    assert f"Wrote {written}: " in result.stdout


def test_without_a_framework_it_needs_none(tmp_path: Path) -> None:
    assert new(str(tmp_path)).exit_code == 0

    assert (tmp_path / "agent" / "assistant.py").read_text() == files_of("plain")["assistant.py"]


def test_in_a_checkout_it_says_what_make_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("Makefile", "template.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "handler").mkdir()

    said = new().stdout

    assert said.startswith("Wrote agent: __init__.py, assistant.py, ")
    assert [line.strip() for line in said.splitlines() if line.startswith("  ")] == [
        "make run AGENT=agent.assistant:agent",
        "make test-agent",
        'make deploy ARGS="--guided --parameter-overrides Agent=agent.assistant:agent"',
    ]


def test_elsewhere_it_says_how_to_try_it_and_what_is_deployed(tmp_path: Path) -> None:
    said = new(str(tmp_path)).stdout

    assert f"cd {tmp_path}" in said
    assert "lambda-responses run --agent agent.assistant:agent" in said
    assert said.endswith(
        "What is deployed is the folder agent/ of a checkout of lambda-responses.\n"
    )


def test_it_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    mine = tmp_path / "agent" / "assistant.py"
    mine.write_text("mine")

    result = new(str(tmp_path))

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"In {tmp_path / 'agent'} there is already assistant.py, and nothing is overwritten: "
        "move it away, or name another folder.\n"
    )
    assert [path.name for path in mine.parent.iterdir()] == ["assistant.py"]
    assert mine.read_text() == "mine"


def test_other_files_of_the_folder_do_not_disturb_it(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "support.py").touch()

    assert new(str(tmp_path)).exit_code == 0


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "agent").touch()

    result = new(str(tmp_path))

    assert result.exit_code == 2
    assert result.stderr == f"{tmp_path / 'agent'} cannot be written (file exists).\n"


def test_an_unknown_framework_is_answered_with_those_that_there_are(tmp_path: Path) -> None:
    result = new(str(tmp_path), "--framework", "crewai")

    assert result.exit_code == 2
    assert all(f"'{name}'" in result.stderr for name in FRAMEWORKS)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_its_packages_are_those_that_the_adapters_were_tested_with(framework: str) -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = {Requirement(line) for line in files_of(framework)["requirements.txt"].splitlines()
             if not line.startswith("#")}  # fmt: skip

    extra = project["project"]["optional-dependencies"].get(framework, [])
    tested = [line for lines in project["dependency-groups"].values() for line in lines]
    known = {
        (each.name, str(each.specifier)) for line in [*extra, *tested] if isinstance(line, str)
        for each in [Requirement(line)]
    }  # fmt: skip
    assert {(each.name, str(each.specifier)) for each in asked} <= known
    assert {Requirement(line).name for line in extra} <= {each.name for each in asked}


def test_the_zip_has_none_of_it() -> None:
    makefile = (ROOT / "Makefile").read_text()

    found = re.search(r"^LOCAL_ONLY := (.*)$", makefile, re.MULTILINE)

    assert found is not None
    assert {"cli_new.py", "new"} <= set(found[1].split())
