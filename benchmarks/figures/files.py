"""The files of figures: read with an error in words, written whole."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.common.errors import BenchmarkError


def write_whole(path: str, make: Callable[[str], None]) -> None:
    """Makes a file under another name, and renames it when complete.

    Args:
        path: Its name in the end. Directories on the way are made.
        make: Makes the file, under the path that it is given.

    Raises:
        BenchmarkError: If the file cannot be written.
    """
    directory, name = os.path.split(path)
    partial = os.path.join(directory, f".partial-{name}")
    try:
        os.makedirs(directory or ".", exist_ok=True)
        make(partial)
        os.replace(partial, path)
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be written: {error}") from error
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def write_json(path: str, value: Any) -> None:
    """Writes a JSON file, which appears when it is complete."""
    # Before the file is opened: a value that JSON cannot hold leaves nothing.
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"

    def make(partial: str) -> None:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)

    write_whole(path, make)


def read_json(path: str) -> Any:
    """Returns what a JSON file holds.

    Raises:
        BenchmarkError: If it is missing or damaged.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{path} cannot be read: {error}") from error


def read_results(patterns: Sequence[str]) -> list[dict[str, Any]]:
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
    return [read_json(path) for path in paths]


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
