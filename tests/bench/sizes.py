"""Unzipped sizes: of what is installed because of a requirement, with the bytecode beside it."""

from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from importlib.util import cache_from_source
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(lines: Iterable[str]) -> set[str]:
    """Return the names of all distributions that these requirements bring, themselves included.

    Raises `importlib.metadata.PackageNotFoundError` where one of them is not installed here.
    """
    found: set[tuple[str, str]] = set()
    left = [*map(Requirement, lines)]
    while left:
        asked = left.pop()
        name = canonicalize_name(asked.name)
        new = {(name, extra) for extra in ("", *asked.extras)} - found
        found |= new
        for _, extra in sorted(new):
            needs = map(Requirement, distribution(name).requires or ())
            left += [each for each in needs if _applies(each, extra)]
    return {name for name, _ in found}


def megabytes(names: Iterable[str]) -> float:
    """Return the size of these distributions in a zip's folder, in millions of bytes."""
    return sum(_bytes(distribution(name)) for name in names) / 1e6


def _applies(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    if marker is None:
        return not extra  # found under the name alone
    is_without = marker.evaluate({"extra": ""})
    return is_without if not extra else marker.evaluate({"extra": extra}) and not is_without


def _bytes(found: Distribution) -> int:
    total = 0
    for file in found.files or ():
        path = Path(str(found.locate_file(file)))
        if file.suffix == ".pyc" or ".." in file.parts:  # commands are not in a zip
            continue
        total += _size(path)
        if file.suffix == ".py":
            total += _size(Path(cache_from_source(str(path))))
    return total


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
