"""What each framework costs: the import of its adapter, memory, and its share of the zip.

The rows are the table of docs/agents.md, which is copied from here.
"""

import json
import os
import statistics
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench.sizes import closure, megabytes


ROUNDS: Final = 5
LIMIT_MB: Final = 250.0
"""What Lambda takes of a zip, unzipped (AWS's page "Lambda quotas")."""

ADAPTERS: Final = {
    "agent-framework": "agent_framework",
    "langgraph": "langgraph",
    "openai": "openai_upstream",
    "openai-agents": "openai_agents",
    "pydantic-ai": "pydantic_ai",
    "strands": "strands",
}
"""The adapter (`channel.agents.…`) of each extra that has one."""

_ROOT: Final = Path(__file__).parents[2]
_BASE: Final = "import handler.buffered"
_TAIL: Final = """
import json, pathlib, resource, time
took = time.process_time()
status = pathlib.Path("/proc/self/status")
if status.exists():
    (kilobytes,) = (line.split()[1] for line in status.read_text().splitlines() if "VmRSS" in line)
else:
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000  # macOS counts bytes
print(json.dumps([took, float(kilobytes) / 1000]))
"""
_ENVIRONMENT: Final = {
    "AWS_REGION": "eu-central-1",
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_LAMBDA_FUNCTION_NAME": "bench",
    "OPENAI_API_KEY": "bench",
    "TABLE_NAME": "bench",
}


@dataclass(frozen=True)
class Heading:
    """The head of the table, with what the base app takes."""

    base: "Cost"

    @property
    def is_met(self) -> bool:
        """Nothing is asked of it."""
        return True

    def __str__(self) -> str:
        cells = (
            "extra",
            "import, as times the base app's",
            "memory (RSS)",
            "its packages, unzipped",
            f"with the base's {self.base.packages_mb:.0f} MB, of {LIMIT_MB:.0f}",
        )
        return f"\n| {' | '.join(cells)} |\n|{'---|' * len(cells)}\n{self.base}"


@dataclass(frozen=True)
class Cost:
    """A row of the table: `import_s` is CPU time, `base` is the row that it is compared with."""

    what: str
    import_s: float
    memory_mb: float
    packages_mb: float
    base: "Cost | None" = None

    @property
    def total_mb(self) -> float:
        """The packages together with those of the base."""
        return self.packages_mb + (self.base.packages_mb if self.base else 0.0)

    @property
    def is_met(self) -> bool:
        """Whether Lambda takes it."""
        return self.total_mb <= LIMIT_MB

    def __str__(self) -> str:
        ratio = self.import_s / (self.base.import_s if self.base else self.import_s)
        fits = "fits" if self.is_met else "DOES NOT FIT"
        cells = (
            self.what,
            f"{ratio:.1f}",
            f"{self.memory_mb:.0f} MB",
            f"{self.packages_mb:.0f} MB",
            f"{self.total_mb:.0f} MB, {fits}",
        )
        return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class _Case:
    what: str
    imports: str
    requirements: tuple[str, ...] = ()


def measure() -> list[Heading | Cost]:
    """Return the table: the base app, what is beside it, each extra, and each agent with its model."""
    project = _project()
    in_base = closure(project["dependencies"])
    took: dict[str, list[tuple[float, float]]] = {}
    cases = _cases(project)
    for _ in range(ROUNDS):
        for case in (_Case("", "pass"), *cases):
            took.setdefault(case.what, []).append(_took(case.imports))
    base = _cost("the base app", took[""], megabytes(in_base))
    rows = [
        _cost(case.what, took[case.what], megabytes(closure(case.requirements) - in_base), base)
        for case in cases
    ]
    return [Heading(base), *rows]


def _cost(
    what: str, took: list[tuple[float, float]], packages_mb: float, base: Cost | None = None
) -> Cost:
    import_s, memory_mb = (statistics.median(values) for values in zip(*took, strict=True))
    return Cost(what, import_s, memory_mb, packages_mb, base)


def _cases(project: dict[str, Any]) -> list[_Case]:
    # Its adapter is nothing without the client, which the base's botocore makes.
    cases = [_Case("Bedrock (no extra)", "import handler.new.bedrock.assistant")]
    for extra, lines in project["optional-dependencies"].items():
        if extra == "local":
            continue
        module = ADAPTERS[extra]
        cases.append(_Case(f"`{extra}`", _adapter(module), tuple(lines)))
        written = _written(module)
        if written and closure(written) != closure(lines):
            imports = f"{_adapter(module)}, handler.new.{module}.assistant"
            others = closure(written) - closure(lines)
            named = [line for line in written if closure([line]) & others]
            cases.append(_Case(f"`{extra}` with {_names(named)}", imports, written))
    return cases


def _adapter(module: str) -> str:
    return f"import channel.agents.{module}"


def _written(module: str) -> tuple[str, ...]:
    """Return what the agent that `lambda-responses new` writes needs."""
    file = _ROOT / "handler" / "new" / module / "requirements.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    return tuple(line for line in lines if not line.startswith("#"))


def _names(lines: list[str]) -> str:
    return ", ".join(f"`{line.partition('>')[0]}`" for line in lines)


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    return project


def _took(imports: str) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", f"{_BASE}\n{imports}\n{_TAIL}"],
        env={**_inherited(), **_ENVIRONMENT},
        capture_output=True,
        check=True,
        text=True,
    )
    seconds, memory_mb = json.loads(done.stdout.splitlines()[-1])
    return seconds, memory_mb


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")}  # noqa: TID251
