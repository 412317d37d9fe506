"""The results that are kept of a grid's runs."""

from __future__ import annotations

import glob
import os
from typing import Any

from benchmarks.common import files

RESULTS_DIR = "benchmarks/results/table"
_RESULTS = "*-seed-*.json"


def grids(directory: str) -> list[str]:
    """Returns the names of the grids that have results in a directory."""
    paths = glob.glob(os.path.join(glob.escape(directory), "*", _RESULTS))
    return sorted({os.path.basename(os.path.dirname(path)) for path in paths})


def results(directory: str) -> list[dict[str, Any]]:
    """Returns what all runs of a grid found, ordered by optimizer and seed."""
    paths = glob.glob(os.path.join(glob.escape(directory), _RESULTS))
    found = [files.read_json(path) for path in paths]
    return sorted(found, key=lambda c: (c["flags"]["optimizer"], c["seed"]))
