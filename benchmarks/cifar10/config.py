"""The settings of a run: the presets, and the checks."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

from benchmarks.common.errors import BenchmarkError

CHOICES: dict[str, tuple[Any, ...]] = {
    "preset": ("digits", "small", "paper"),
    "dataset": ("digits", "cifar10"),
    "resnet_size": (18, 34),
    "batch_norm": ("stock", "moving_free"),
    "optimizer": ("momentum", "momentumw", "adam", "adamw"),
    "weight_decay_on": ("all", "kernels"),
    "strategy": ("constant", "swa"),
    "precision": ("float32", "mixed_bfloat16"),
    "distribution": ("none", "mirrored"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run: two runs with the same give the same figures.

    Each field is the flag of the same name; `__main__.py` says what each means.
    """

    preset: str
    dataset: str
    data_dir: str | None
    max_samples: int | None
    resnet_size: int
    width: int
    batch_norm: str
    batch_norm_momentum: float
    optimizer: str
    weight_decay: float
    weight_decay_on: str
    strategy: str
    compare_decay: bool
    keep_weights: bool
    epochs_before_swa: int
    epochs: int
    batch_size: int
    learning_rate: float
    swa_learning_rate: float
    refit_samples: int
    evaluate_every: int
    seed: int
    precision: str
    distribution: str
    num_replicas: int


FLAGS = tuple(field.name for field in dataclasses.fields(Config))
"""The names of the flags that make a run what it is."""

_COMMON: dict[str, Any] = {
    "data_dir": None,
    "max_samples": None,
    "batch_norm": "stock",
    "batch_norm_momentum": 0.99,
    "optimizer": "momentumw",
    "weight_decay_on": "all",
    "compare_decay": True,
    "keep_weights": False,
    "seed": 0,
    "precision": "float32",
    "distribution": "none",
    "num_replicas": 1,
}

PRESETS: dict[str, dict[str, Any]] = {
    "digits": {
        **_COMMON,
        "dataset": "digits",
        "resnet_size": 18,
        "width": 16,
        "weight_decay": 5e-4,
        "strategy": "constant",
        "epochs_before_swa": 15,
        "epochs": 30,
        "batch_size": 64,
        "learning_rate": 0.6,
        "swa_learning_rate": 0.01,
        "refit_samples": 1024,
        "evaluate_every": 5,
    },
    "small": {
        **_COMMON,
        "dataset": "cifar10",
        "max_samples": 10_000,
        "resnet_size": 34,
        "width": 8,
        "weight_decay": 1e-4,
        "strategy": "constant",
        "epochs_before_swa": 12,
        "epochs": 24,
        "batch_size": 128,
        "learning_rate": 0.2,
        "swa_learning_rate": 0.01,
        "refit_samples": 1024,
        "evaluate_every": 2,
    },
    "paper": {
        **_COMMON,
        "dataset": "cifar10",
        "resnet_size": 34,
        "width": 64,
        "weight_decay": 1e-4,
        "strategy": "swa",
        "compare_decay": False,
        "epochs_before_swa": 100,
        "epochs": 200,
        "batch_size": 128,
        "learning_rate": 0.1,
        "swa_learning_rate": 0.001,
        "refit_samples": 10240,
        "evaluate_every": 1,
    },
}


def resolve(given: Mapping[str, Any]) -> Config:
    """Returns the settings given, and the preset's for the others.

    Without a preset the dataset chooses it: `small` for `cifar10`, otherwise
    `digits`.

    >>> resolve({"epochs": 40, "epochs_before_swa": 20}).width
    16

    Args:
        given: From the name of a flag to its value. None means not given.

    Raises:
        BenchmarkError: If a value, or two together, make no sense.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    by_dataset = "small" if chosen.get("dataset") == "cifar10" else "digits"
    preset = chosen.setdefault("preset", by_dataset)
    if isinstance(chosen.get("resnet_size"), str):  # as absl gives a choice
        chosen["resnet_size"] = int(chosen["resnet_size"])
    _check_choice("preset", preset)
    config = Config(**{**PRESETS[preset], **chosen})
    _check(config)
    return config


def as_flags(config: Config) -> dict[str, Any]:
    """Returns the settings as a dictionary, in the order of `Config`."""
    return dataclasses.asdict(config)


def _check(config: Config) -> None:
    for name in CHOICES:
        _check_choice(name, getattr(config, name))
    for name in (
        "width",
        "epochs",
        "batch_size",
        "refit_samples",
        "evaluate_every",
        "num_replicas",
    ):
        _check_range(config, name, 1, math.inf)
    if config.max_samples is not None:
        _check_range(config, "max_samples", 1, math.inf)
    _check_range(config, "seed", 0, 2**31 - 1)
    _check_range(config, "epochs_before_swa", 0, math.inf)
    _check_range(config, "weight_decay", 0.0, 1.0, "< 1")
    _check_range(config, "batch_norm_momentum", 0.0, 1.0, "< 1")
    for name in ("learning_rate", "swa_learning_rate"):
        value = getattr(config, name)
        if not (math.isfinite(value) and value > 0.0):
            raise _wrong(name, "a finite number > 0", value)
    if config.epochs_before_swa >= config.epochs:
        raise BenchmarkError(
            "`--epochs_before_swa` must be < `--epochs`, for at least one "
            "model to average. Received: "
            f"--epochs_before_swa={config.epochs_before_swa}, "
            f"--epochs={config.epochs}"
        )
    _check_replicas(config)
    _check_data_dir(config)


def _check_replicas(config: Config) -> None:
    if config.distribution == "none" and config.num_replicas > 1:
        raise BenchmarkError(
            "`--num_replicas` must be 1 without `--distribution=mirrored`. "
            f"Received: --num_replicas={config.num_replicas}"
        )
    if config.batch_size % config.num_replicas:
        raise BenchmarkError(
            "`--batch_size` must be a multiple of `--num_replicas`, for each "
            "to have the same share. "
            f"Received: --batch_size={config.batch_size}, "
            f"--num_replicas={config.num_replicas}"
        )


def _check_data_dir(config: Config) -> None:
    if config.data_dir is None:
        return
    if config.dataset == "digits":
        raise BenchmarkError(
            "`--data_dir` must be left out with `--dataset=digits`, which "
            "scikit-learn brings along. "
            f"Received: --data_dir={config.data_dir}"
        )
    if not os.path.isdir(config.data_dir):
        raise _wrong("data_dir", "an existing directory", config.data_dir)


def _check_choice(name: str, value: Any) -> None:
    if value not in CHOICES[name]:
        wanted = ", ".join(str(choice) for choice in CHOICES[name])
        raise _wrong(name, f"one of {wanted}", value)


def _check_range(
    config: Config, name: str, low: float, high: float, upper: str = ""
) -> None:
    value = getattr(config, name)
    inside = low <= value < high if upper else low <= value <= high
    if not inside:
        wanted = f">= {low}"
        if upper:
            wanted += f" and {upper}"
        elif math.isfinite(high):
            wanted += f" and <= {high}"
        raise _wrong(name, wanted, value)


def _wrong(name: str, wanted: str, received: Any) -> BenchmarkError:
    return BenchmarkError(
        f"`--{name}` must be {wanted}. Received: --{name}={received}"
    )
