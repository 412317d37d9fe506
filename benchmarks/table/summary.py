"""The figures of a grid, over seeds: what `table.json` holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.cifar10 import config as config_lib
from benchmarks.common.errors import BenchmarkError
from benchmarks.table import intervals
from benchmarks.table.plan import departures

SETS = ("test", "validation")
MEASURES = ("accuracy", "loss")
LEVEL = 0.95
PAIRS = (
    ("swa_refit", "refit"),
    ("swa_refit", "moving"),
    ("swa_refit", "decayed_refit"),
    ("swa_refit", "decayed_moving"),
    ("swa_refit", "swa"),
    ("refit", "moving"),
    ("decayed_refit", "decayed_moving"),
)
"""The ways to evaluate that are compared, by their keys in `results.json`."""

_OF_AN_OPTIMIZER = ("learning_rate", "swa_learning_rate", "weight_decay")
# Digits behind the point that are kept: the same on every machine.
_DIGITS = 6


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the figures of each optimizer over its seeds.

    By optimizer: `seeds`; `learning_rate` and `weight_decay`; for each set,
    way and measure `mean` and `deviation`; under `differences`, for each of
    `PAIRS` as "first-second", `mean` and `interval`, on the test images.

    Args:
        results: Of the runs, each as `results.json` has it.

    Raises:
        BenchmarkError: If there are none, or if their settings are not those
            of one grid.
    """
    _check(results)
    by_optimizer: dict[str, list[Any]] = {}
    for contents in results:
        of_one = by_optimizer.setdefault(contents["flags"]["optimizer"], [])
        of_one.append(contents)
    return {
        name: _rounded(_of_one(by_optimizer[name]))
        for name in config_lib.CHOICES["optimizer"]
        if name in by_optimizer
    }


def _check(results: Sequence[Mapping[str, Any]]) -> None:
    if not results:
        raise BenchmarkError(
            "There must be a result of a run to make a table. Received: none"
        )
    first = results[0]["flags"]
    firsts: dict[str, Mapping[str, Any]] = {}
    for contents in results:
        flags = contents["flags"]
        _agree(first, flags, lambda f: {"preset": f["preset"]})
        _agree(first, flags, _of_all)
        _agree(firsts.setdefault(flags["optimizer"], flags), flags, departures)


def _of_all(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the departures that all optimizers must share."""
    return {
        name: value
        for name, value in departures(flags).items()
        if name not in _OF_AN_OPTIMIZER
    }


def _agree(
    one: Mapping[str, Any],
    other: Mapping[str, Any],
    settings: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> None:
    if settings(one) != settings(other):
        raise BenchmarkError(
            "The runs of a table must share their settings. Received: "
            f"{one['optimizer']} seed {one['seed']} with {settings(one)}, "
            f"{other['optimizer']} seed {other['seed']} with {settings(other)}"
        )


def _of_one(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the figures of one optimizer."""
    finals = [contents["final"] for contents in results]
    ways = [
        way
        for way in finals[0]["test"]
        if all(way in f["test"] for f in finals)
    ]

    def values(images: str, way: str, measure: str) -> list[float]:
        return [final[images][way][measure] for final in finals]

    def spread(of: Sequence[float]) -> dict[str, Any]:
        mean, deviation = intervals.mean_and_deviation(of)
        return {"mean": mean, "deviation": deviation}

    def difference(of: Sequence[float]) -> dict[str, Any]:
        mean, _ = intervals.mean_and_deviation(of)
        return {"mean": mean, "interval": intervals.t_interval(of, LEVEL)}

    found: dict[str, Any] = {
        "seeds": [contents["seed"] for contents in results],
        "learning_rate": results[0]["flags"]["learning_rate"],
        "weight_decay": results[0]["flags"]["weight_decay"],
    }
    for images in SETS:
        found[images] = {
            way: {m: spread(values(images, way, m)) for m in MEASURES}
            for way in ways
        }
    found["differences"] = {
        f"{one}-{other}": {
            measure: difference(
                [
                    a - b
                    for a, b in zip(
                        values("test", one, measure),
                        values("test", other, measure),
                    )
                ]
            )
            for measure in MEASURES
        }
        for one, other in PAIRS
        if one in ways and other in ways
    }
    return found


def _rounded(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _rounded(branch) for name, branch in tree.items()}
    if isinstance(tree, list):
        return [_rounded(branch) for branch in tree]
    return round(tree, _DIGITS) if isinstance(tree, float) else tree
