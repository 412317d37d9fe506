"""The runs of a grid: optimizers, seeds, rates, and where each run is kept."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.cifar10 import config as config_lib
from benchmarks.common.errors import BenchmarkError

SEEDS: dict[str, range] = {
    "momentumw": range(5),
    "adamw": range(5),
    "momentum": range(3),
    "adam": range(3),
}
"""The seeds that are reported, by optimizer, in the order of their runs."""

# The rates of `momentumw`, and of `adamw` in `small`, are chosen on validation
# images, with seeds from 101 on, which are not reported
# (benchmarks/results/choice). `momentum` and `adam` decay by an L2 term in the
# loss. For `momentum` the same number means the same decay at rate 0.1:
# 0.1 / (1 - 0.9) is 1.
SETTINGS: dict[str, dict[str, dict[str, float]]] = {
    "digits": {
        "momentumw": {},  # the preset's own
        "adamw": {"learning_rate": 0.001, "weight_decay": 5e-4},
        "momentum": {"learning_rate": 0.2, "weight_decay": 5e-4},
        "adam": {"learning_rate": 0.001, "weight_decay": 5e-4},
    },
    "small": {
        "momentumw": {},
        "adamw": {"learning_rate": 0.01, "weight_decay": 1e-4},
        "momentum": {"learning_rate": 0.1, "weight_decay": 1e-4},
        "adam": {"learning_rate": 0.01, "weight_decay": 1e-4},
    },
    "paper": {
        "momentumw": {"learning_rate": 0.1, "swa_learning_rate": 1e-3},
        "adamw": {"learning_rate": 0.01, "swa_learning_rate": 1e-4},
        "momentum": {"learning_rate": 0.1, "swa_learning_rate": 1e-3},
        "adam": {"learning_rate": 0.001, "swa_learning_rate": 1e-5},
    },
}
"""By preset and optimizer, the settings that are not the preset's."""

_OWN_FLAGS = ("preset", "optimizer", "seed", "data_dir")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a grid.

    Attributes:
        optimizer: Its optimizer.
        seed: Its seed.
        given: The settings that are given to it, by name of the flag.
        directory: Where it is made.
        result: The file that is kept of it.
    """

    optimizer: str
    seed: int
    given: dict[str, Any]
    directory: str
    result: str

    def __str__(self) -> str:
        return f"{self.optimizer} seed {self.seed}"


def runs(
    preset: str,
    optimizers: Sequence[str],
    seeds: Sequence[str] | None,
    data_dir: str | None,
    settings: Sequence[str],
    runs_dir: str,
    results_dir: str,
) -> list[Run]:
    """Returns the runs of a grid, in their order.

    Args:
        preset: Of `benchmarks.cifar10`.
        optimizers: To run, in this order.
        seeds: Integers; None for `SEEDS`.
        data_dir: Of `benchmarks.cifar10`.
        settings: Other flags of it, each as `name=value`.
        runs_dir: Where the runs are made.
        results_dir: Where their results are kept.

    Raises:
        BenchmarkError: If a setting makes no sense.
    """
    more = _parsed(preset, settings)
    found = []
    for optimizer in optimizers:
        if optimizer not in SEEDS:
            raise BenchmarkError(
                f"`--optimizers` must be some of {', '.join(SEEDS)}. "
                f"Received: {optimizer}"
            )
        for seed in SEEDS[optimizer] if seeds is None else map(_seed, seeds):
            given = {**_usual(preset, optimizer, seed), **more}
            if data_dir is not None:
                given["data_dir"] = data_dir
            config_lib.resolve(given)  # raises what the run would raise
            found.append(
                Run(
                    optimizer,
                    seed,
                    given,
                    os.path.join(runs_dir, optimizer, f"seed-{seed}"),
                    os.path.join(results_dir, f"{optimizer}-seed-{seed}.json"),
                )
            )
    return found


def departures(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings in which a run departs from those of its grid.

    They are what `--settings` must give to make the run again. Where the data
    is does not count. Nor does a flag that only one of the two has: it is
    younger than the run, or was given up since.

    Args:
        flags: All settings of the run, as `results.json` has them.
    """
    preset, optimizer = flags["preset"], flags["optimizer"]
    usual = config_lib.resolve(_usual(preset, optimizer, flags["seed"]))
    expected = config_lib.as_flags(usual)
    return {
        name: value
        for name, value in flags.items()
        if name not in _OWN_FLAGS and expected.get(name, value) != value
    }


def _usual(preset: str, optimizer: str, seed: int) -> dict[str, Any]:
    own = {"preset": preset, "optimizer": optimizer, "seed": seed}
    return {**own, **SETTINGS[preset][optimizer]}


def _parsed(preset: str, settings: Sequence[str]) -> dict[str, Any]:
    parsed = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in config_lib.FLAGS or name in _OWN_FLAGS:
            raise BenchmarkError(
                "`--settings` must be name=value, with names of flags of "
                f"benchmarks.cifar10 other than {', '.join(_OWN_FLAGS)}. "
                f"Received: {setting}"
            )
        try:
            value = json.loads(text.lower())  # a number, true or false
        except ValueError:
            value = text
        usual = config_lib.PRESETS[preset][name]
        wanted = int if usual is None else type(usual)
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise BenchmarkError(
                f"`--settings` must give `{name}` a value of type "
                f"{wanted.__name__}. Received: {setting}"
            )
        parsed[name] = value
    return parsed


def _seed(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise BenchmarkError(
            f"`--seeds` must be integers. Received: {text}"
        ) from error
