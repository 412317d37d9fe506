"""Prints the oldest versions that setup.py allows, as constraints of pip.

Usage: python .ci/oldest_versions.py, in an environment that has `swa_tf`; its
dependencies need not be there.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable

_NAME = re.compile(r"[\w.-]+")
# A lower bound, or the series that an extra wants: the 2.15 of 2.15.*.
_BOUND = re.compile(r"(?:>=|==)([\d.]+?)(?:\.\*)?(?:,|$)")


def constraints(requirements: Iterable[str]) -> dict[str, str | None]:
    """The oldest version of each package; None of what has no bound.

    >>> constraints(["b<3,>=1.2", "a==2.15.*; extra == 'x'", "c"])
    {'a': '2.15', 'b': '1.2', 'c': None}

    Raises:
        ValueError: If a package has different bounds in different places, of
            which only one could be tried.
    """
    found: dict[str, str | None] = {}
    for requirement in requirements:
        wanted = requirement.split(";")[0].replace(" ", "")
        name = _NAME.match(wanted).group()
        bound = _BOUND.search(wanted)
        version = bound and bound.group(1)
        if found.setdefault(name, version) != version:
            raise ValueError(
                f"{name} must have one lower bound. "
                f"Received: {found[name]} and {version}"
            )
    return dict(sorted(found.items()))


if __name__ == "__main__":
    wanted = importlib.metadata.requires("swa-tf") or []
    for name, version in constraints(wanted).items():
        if version:
            print(f"{name}=={version}")
