"""The command `lambda-responses new`: a minimal agent, for whichever framework."""

from pathlib import Path
from typing import Final

import click

from handler.new import AGENT, FRAMEWORKS, files_of


_CHECKOUT: Final = ("Makefile", "template.yaml", "handler")
"""What a checkout of this project has, and a user's other folders have not all of."""


@click.command()
@click.argument("folder", default=".", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--framework",
    type=click.Choice(FRAMEWORKS),
    default=FRAMEWORKS[0],
    show_default=True,
    help="What the agent is made with.",
)
def new(folder: Path, framework: str) -> None:
    """Write a minimal agent into FOLDER/agent: its code, its packages, its tests.

    FOLDER is a checkout of this project, which is what is deployed, or any other for a trial.
    """
    from handler.cli import CommandError  # noqa: PLC0415 - which imports this module

    agent = folder / "agent"
    files = files_of(framework)
    there = [name for name in files if (agent / name).exists()]
    if there:
        msg = f"In {agent} there is already {', '.join(there)}, and nothing is overwritten: move it away, or name another folder."
        raise CommandError(msg)
    try:
        agent.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with (agent / name).open("x") as file:
                file.write(text)
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise CommandError(f"{error.filename} cannot be written ({reason}).") from error
    click.echo(_next_steps(folder, [*files]))


def _next_steps(folder: Path, names: list[str]) -> str:
    is_checkout = all((folder / name).exists() for name in _CHECKOUT)
    into = [] if folder == Path() else [f"cd {folder}"]
    steps = (
        [
            f"make run AGENT={AGENT}",
            "make test-agent",
            f'make deploy ARGS="--guided --parameter-overrides Agent={AGENT}"',
        ]
        if is_checkout
        else [
            "pip install -r agent/requirements.txt",
            f"lambda-responses run --agent {AGENT}",
            "pytest agent",
        ]
    )
    lines = [
        f"Wrote {folder / 'agent'}: {', '.join(names)}.",
        "Its settings are in the first lines of assistant.py. What now:",
        "",
        *[f"  {line}" for line in [*into, *steps]],
    ]
    if not is_checkout:
        lines += ["", "What is deployed is the folder agent/ of a checkout of lambda-responses."]
    return "\n".join(lines)
