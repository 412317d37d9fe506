"""The settings of a run: mistakes in them, presets, and their flags."""

import pytest
from absl import flags

from benchmarks.cifar10 import (
    __main__,  # noqa: F401 - it defines the flags
    config,
)
from benchmarks.common.errors import BenchmarkError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "`--epochs` must be >= 1. Received: --epochs=0"),
        ({"epochs": 3, "epochs_before_swa": 3}, "`--epochs_before_swa`"),
        ({"epochs_before_swa": -1}, "`--epochs_before_swa` must be >= 0"),
        ({"width": 0}, "`--width`"),
        ({"batch_size": -5}, "`--batch_size`"),
        ({"refit_samples": 0}, "`--refit_samples`"),
        ({"evaluate_every": 0}, "`--evaluate_every`"),
        ({"max_samples": 0}, "`--max_samples`"),
        ({"seed": -1}, "`--seed`"),
        ({"seed": 2**31}, "`--seed`"),
        ({"learning_rate": 0.0}, "`--learning_rate`"),
        ({"learning_rate": float("nan")}, "`--learning_rate`"),
        ({"swa_learning_rate": float("inf")}, "`--swa_learning_rate`"),
        ({"weight_decay": 1.0}, "`--weight_decay`"),
        ({"weight_decay": -0.1}, "`--weight_decay`"),
        ({"batch_norm_momentum": 1.0}, "`--batch_norm_momentum`"),
        ({"resnet_size": 50}, "`--resnet_size` must be one of 18, 34"),
        ({"distribution": "tpu"}, "`--distribution` must be one of none,"),
        ({"num_replicas": 2}, "without `--distribution=mirrored`"),
        (
            {"distribution": "mirrored", "num_replicas": 3},
            "`--batch_size` must be a multiple of `--num_replicas`",
        ),
        ({"optimizer": "sgd"}, "`--optimizer` must be one of momentum,"),
        ({"preset": "big"}, "`--preset` must be one of digits,"),
        ({"data_dir": "."}, "`--data_dir` must be left out"),
        (
            {"dataset": "cifar10", "data_dir": "/no/such"},
            "`--data_dir` must be an existing directory. "
            "Received: --data_dir=/no/such",
        ),
    ],
)
def test_mistakes_are_named(given, message):
    with pytest.raises(BenchmarkError) as raised:
        config.resolve(given)
    assert message in str(raised.value)


def test_flags_override_the_preset():
    resolved = config.resolve({"preset": "paper", "epochs": 150})
    assert resolved.epochs == 150
    assert (resolved.width, resolved.resnet_size) == (64, 34)
    assert (resolved.learning_rate, resolved.swa_learning_rate) == (
        0.1,
        0.001,
    )
    assert resolved.optimizer == "momentumw"
    assert resolved.weight_decay == 1e-4
    assert (resolved.epochs_before_swa, resolved.batch_size) == (100, 128)


def test_dataset_chooses_the_preset():
    assert config.resolve({}).preset == "digits"
    small = config.resolve({"dataset": "cifar10"})
    assert (small.preset, small.width, small.resnet_size) == (
        "small",
        8,
        34,
    )


def test_every_setting_is_a_flag():
    assert set(config.FLAGS) <= set(flags.FLAGS)
