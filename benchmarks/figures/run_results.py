"""The results of runs that a figure is drawn from."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.common import files
from benchmarks.common.errors import BenchmarkError


def read(patterns: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the contents of the `results.json` files of some runs.

    Args:
        patterns: Their paths, with the wildcards of a shell.

    Raises:
        BenchmarkError: If there is no such file, or one cannot be read.
    """
    paths = sorted({path for p in patterns for path in glob.glob(p)})
    if not paths:
        raise BenchmarkError(
            "`--results` must name at least one results file. "
            f"Received: --results={','.join(patterns)}, which names none"
        )
    return [files.read_json(path) for path in paths]


def check_alike(
    runs: Sequence[dict[str, Any]], apart_from: Iterable[str]
) -> None:
    """Checks that runs have the same flags, but for some.

    Args:
        runs: The contents of their results files.
        apart_from: Names of flags that may differ.

    Raises:
        BenchmarkError: If another flag differs.
    """
    free = {*apart_from, "data_dir", "keep_weights"}
    first = runs[0]["flags"]
    for run in runs[1:]:
        for name in sorted({*first, *run["flags"]} - free):
            one, other = first.get(name), run["flags"].get(name)
            if one != other:
                raise BenchmarkError(
                    "The runs of a figure must be alike but for "
                    f"{', '.join(apart_from)}. Received: runs with "
                    f"--{name}={one} and --{name}={other}"
                )
