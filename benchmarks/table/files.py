"""The files that are kept of a grid."""

from __future__ import annotations

import glob
import json
import os
from typing import Any

from benchmarks.common.errors import BenchmarkError

RESULTS_DIR = "benchmarks/results/table"
_RESULTS = "*-seed-*.json"


def grids(directory: str) -> list[str]:
    """Returns the names of the grids that have results in a directory."""
    paths = glob.glob(os.path.join(glob.escape(directory), "*", _RESULTS))
    return sorted({os.path.basename(os.path.dirname(path)) for path in paths})


def results(directory: str) -> list[dict[str, Any]]:
    """Returns what all runs of a grid found, ordered by optimizer and seed."""
    paths = glob.glob(os.path.join(glob.escape(directory), _RESULTS))
    found = [contents(path) for path in paths]
    return sorted(found, key=lambda c: (c["flags"]["optimizer"], c["seed"]))


def contents(path: str) -> Any:
    """Returns what a JSON file holds.

    Raises:
        BenchmarkError: If it is missing or damaged.
    """
    try:
        return json.loads(read(path))
    except ValueError as error:
        raise BenchmarkError(f"{path} cannot be read: {error}") from error


def read(path: str) -> str:
    """Returns the text of a file.

    Raises:
        BenchmarkError: If it is missing.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read: {error}") from error


def write(path: str, text: str) -> None:
    """Writes a text file under another name, and renames it when complete.

    Raises:
        BenchmarkError: If that fails.
    """
    partial = f"{path}.partial"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be written: {error}") from error
