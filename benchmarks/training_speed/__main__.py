r"""Measures the benchmark's epochs against bare steps of the same model.

    python -m benchmarks.training_speed --preset=digits
    python -m benchmarks.training_speed --preset=small --data_dir=DIRECTORY

An epoch of `benchmarks.cifar10` is timed with all that belongs to it (reading,
augmentation, metrics, the progress bar), then an evaluation with its refits,
and in turns with them as many steps on one batch that lies in memory. It prints
images a second and ratios; that of the evaluation is a mean over the epochs,
of which not every one has one (`--evaluate_every`). Nothing is written.
`--nodeterminism` lets all of them use TensorFlow's operations that are not
deterministic.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks.cifar10 import config as config_lib
from benchmarks.cifar10 import data, evaluation, training
from benchmarks.common import command_line, timing


def define_flags(values: flags.FlagValues = flags.FLAGS) -> flags.FlagValues:
    """Defines the flags, not at import: other scripts have the same names."""
    flags.DEFINE_enum(
        "preset",
        "digits",
        list(config_lib.CHOICES["preset"]),
        "As that of benchmarks.cifar10.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "As that of benchmarks.cifar10.",
        flag_values=values,
    )
    for name in (
        "max_samples",
        "width",
        "batch_size",
        "refit_samples",
        "evaluate_every",
    ):
        flags.DEFINE_integer(
            name, None, "As that of benchmarks.cifar10.", flag_values=values
        )
    flags.DEFINE_integer(
        "rounds", 5, "Epochs that count.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_bool(
        "determinism",
        True,
        "Whether every operation gives the same bits each time, as in a run.",
        flag_values=values,
    )
    return values


def run(values: Mapping[str, Any]) -> dict[str, float]:
    """Measures and prints.

    Args:
        values: Of the flags, by name.

    Returns:
        `images_a_second` of bare steps, `of_bare`, the share of it that an
        epoch has, and `evaluation`, the time that evaluations with their
        refits add to an epoch, as a share of it.
    """
    config = config_lib.resolve(
        {
            name: values[name]
            for name in config_lib.FLAGS
            if name in values and values[name] is not None
        }
    )
    first = config.epochs_before_swa + 1
    epochs = itertools.count(first)
    config = dataclasses.replace(config, epochs=first + values["rounds"])
    splits = data.load(config)
    trainer = training.Trainer(config, splits)
    evaluator = evaluation.Evaluator(
        trainer.model,
        trainer.swa,
        training.refit_batches(config, splits),
        config.batch_norm == "moving_free",
    )
    validation = {"validation": training.evaluation_batches(splits.validation)}
    bare = _bare_step(trainer.model, trainer.optimizer)
    batch = next(
        iter(data.training_batches(splits, config.batch_size, config.seed, [1]))
    )

    def steps() -> None:
        for _ in range(trainer.steps):
            loss = bare(*batch)
        float(loss)

    def seconds(work: Any) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    ways = {
        "bare steps": lambda: seconds(steps),
        "an epoch": lambda: seconds(lambda: trainer.train_epoch(next(epochs))),
        "an evaluation": lambda: seconds(lambda: evaluator(validation)),
    }
    for way in ways.values():
        way()
    found = timing.in_turns(ways, values["rounds"])
    images = trainer.steps * config.batch_size
    table = Table(title=f"{config.preset}: {images} images an epoch")
    for heading in ("", "seconds", "images a second", "/ an epoch"):
        table.add_column(heading, justify="right" if heading else "left")
    every = {"an evaluation": config.evaluate_every}
    ratios = {
        name: _ratio(times, found["an epoch"]) / every.get(name, 1)
        for name, times in found.items()
    }
    for name, times in found.items():
        median = statistics.median(times)
        table.add_row(
            name,
            f"{median:.2f}",
            "" if name in every else f"{images / median:.0f}",
            f"{ratios[name]:.2f}",
        )
    Console().print(table)
    return {
        "images_a_second": images / statistics.median(found["bare steps"]),
        "of_bare": ratios["bare steps"],
        "evaluation": ratios["an evaluation"],
    }


def _ratio(times: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, others))


def _bare_step(model: tf.keras.Model, optimizer: Any) -> Any:
    """Returns a function that takes one step and measures nothing."""

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(
                    labels, model(images, training=True)
                )
            )
        variables = model.trainable_variables
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables))
        return loss

    return step


def main(argv: Sequence[str]) -> None:
    """Measures as the flags say."""
    values = flags.FLAGS.flag_values_dict()
    tf.keras.utils.set_random_seed(0)
    if values["determinism"]:
        tf.config.experimental.enable_op_determinism()
    command_line.run(argv, lambda: run(values))


if __name__ == "__main__":
    define_flags()
    app.run(main)
