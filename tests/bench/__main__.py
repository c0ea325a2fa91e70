"""`python -m tests.bench [PART …]`: prints the table; fails where a bar is missed."""

import sys
from collections.abc import Callable, Sequence

from tests.bench import cold, direct, frameworks, over_http, streaming, under_rie
from tests.bench.report import Line
from tests.infra.engines import NoEngineError


PARTS: dict[str, Callable[[], Sequence[Line]]] = {
    "cold": cold.measure,
    "direct": direct.measure,
    "http": over_http.measure,
    "rie": under_rie.measure,
    "instance": under_rie.measure_instance,
    "stream": streaming.measure,
    "frameworks": frameworks.measure,
}


def main(names: list[str]) -> int:
    """Run the named parts, or all."""
    print(f"{'':<52} {'ours':>12} {'floor':>12} {'':<5} {'ratio':>6}  bar")  # noqa: T201
    rows: list[Line] = []
    for name in names or PARTS:
        for row in _measure(name):
            print(row, flush=True)  # noqa: T201
            rows.append(row)
    return 0 if all(row.is_met for row in rows) else 1


def _measure(name: str) -> Sequence[Line]:
    try:
        return PARTS[name]()
    except NoEngineError as missing:
        print(f"Without {name}, since {missing}.")  # noqa: T201
        return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
