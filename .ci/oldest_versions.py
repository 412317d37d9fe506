"""Prints the oldest versions that setup.py allows, as constraints of pip.

Usage: python .ci/oldest_versions.py, in an environment that has `swa_tf`; its
dependencies need not be there.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable

# A lower bound, or the series that an extra wants: the 2.15 of 2.15.*.
_BOUND = re.compile(r"([\w.-]+)(?:\[.*\])?(?:>=|==)([\d.]+?)(?:\.\*)?(?:;|,|$)")


def constraints(requirements: Iterable[str]) -> dict[str, str]:
    """The oldest version of each package that has a bound.

    >>> constraints(["b>=1.2", "a==2.15.*; extra == 'x'", "c"])
    {'a': '2.15', 'b': '1.2'}
    """
    found = {}
    for requirement in requirements:
        match = _BOUND.match(requirement.replace(" ", ""))
        if match:
            name, version = match.groups()
            found[name] = version
    return dict(sorted(found.items()))


if __name__ == "__main__":
    wanted = importlib.metadata.requires("swa-tf") or []
    for name, version in constraints(wanted).items():
        print(f"{name}=={version}")
