"""A row of the benchmark's table: ours, the floor's, their ratio and the bar."""

from dataclasses import dataclass
from typing import Protocol


class Line(Protocol):
    """What a part measured: printed as it is."""

    @property
    def is_met(self) -> bool:
        """Whether its bar is met, where it has one."""
        ...


@dataclass(frozen=True)
class Row:
    """One measurement; `bar` is the most the ratio may be, or the least where more is better."""

    what: str
    ours: float
    floor: float
    bar: float | None = None
    unit: str = "us"
    more_is_better: bool = False

    @property
    def ratio(self) -> float:
        """Ours by the floor's."""
        return self.ours / self.floor

    @property
    def is_met(self) -> bool:
        """Whether the bar is met; a row without one is for information."""
        if self.bar is None:
            return True
        return self.ratio >= self.bar if self.more_is_better else self.ratio <= self.bar

    def __str__(self) -> str:
        bar = "" if self.bar is None else f"{'>=' if self.more_is_better else '<='} {self.bar:.2f}"
        verdict = "" if self.bar is None else "met" if self.is_met else "MISSED"
        return (
            f"{self.what:<52} {self.ours:>12,.1f} {self.floor:>12,.1f} {self.unit:<5}"
            f" {self.ratio:>6.2f}  {bar:<8} {verdict}"
        )
