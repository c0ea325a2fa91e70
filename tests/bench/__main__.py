"""`python -m tests.bench [cold] [direct] [http]`: prints the table; fails where a bar is missed."""

import sys
from collections.abc import Callable

from tests.bench import cold, direct, over_http
from tests.bench.report import Row


PARTS: dict[str, Callable[[], list[Row]]] = {
    "cold": cold.measure,
    "direct": direct.measure,
    "http": over_http.measure,
}


def main(names: list[str]) -> int:
    """Run the named parts, or all."""
    print(f"{'':<46} {'ours':>12} {'floor':>12} {'':<5} {'ratio':>6}  bar")  # noqa: T201
    rows = []
    for name in names or PARTS:
        for row in PARTS[name]():
            print(row, flush=True)  # noqa: T201
            rows.append(row)
    return 0 if all(row.is_met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
