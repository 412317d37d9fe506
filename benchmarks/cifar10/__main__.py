r"""SWA and batch-norm refitting, measured on CIFAR-10 or on bundled digits.

    python -m benchmarks.cifar10 --preset=digits
    python -m benchmarks.cifar10 --preset=small --data_dir=DIRECTORY

trains a ResNet v2 at a constant rate, averages its weights at the end of each
epoch, and trains from the same point with a rate that decays to zero. It prints
one table: accuracy and loss, on validation and test, of the decayed weights, of
the last ones at the constant rate and of the average, each with moving
batch-norm statistics and with refit ones. The output directory gets
`results.json`, `results.md`, `curves.png`, TensorBoard scalars and a
checkpoint. A run that was killed goes on with `--resume`, and ends with the
same figures.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
from absl import app, flags, logging

from benchmarks.cifar10 import config as config_lib
from benchmarks.cifar10 import data, report, training
from benchmarks.cifar10.run_directory import RunDirectory
from benchmarks.common import command_line, provenance


def _enum(name: str, meaning: str) -> None:
    choices = [str(choice) for choice in config_lib.CHOICES[name]]
    flags.DEFINE_enum(name, None, choices, meaning)


def _integer(name: str, meaning: str) -> None:
    flags.DEFINE_integer(name, None, meaning)


def _float(name: str, meaning: str) -> None:
    flags.DEFINE_float(name, None, meaning)


_enum(
    "preset",
    "Gives every flag that is not given itself. digits: minutes on a laptop; "
    "small: CIFAR-10 with a narrow network, for a processor; paper: the "
    "published plan at full width, for a GPU. Default: by --dataset.",
)
_enum("dataset", "digits come with scikit-learn; cifar10 is downloaded.")
flags.DEFINE_string(
    "data_dir",
    None,
    "Directory with a copy of CIFAR-10, in place of the download: the "
    "standard binary or python batches, or cifar10_jpeg.npz.",
)
_integer("max_samples", "Training and validation images to use; default all.")
_enum("resnet_size", "Layers of the network.")
_integer("width", "Channels of its first stage; 64 is the real ResNet.")
_enum("batch_norm", "The layer of Keras, or the one of swa_tf.")
_float("batch_norm_momentum", "Of the moving statistics.")
_enum("optimizer", "momentumw and adamw decay the weights apart from the rate.")
_float(
    "weight_decay",
    "momentumw, adamw: the share of a weight that one step takes away, "
    "whatever the rate. momentum, adam: the factor of an L2 term in the "
    "loss, weight_decay * sum(w^2) / 2.",
)
_enum("weight_decay_on", "All trainable variables, or kernels only.")
_enum(
    "strategy",
    "swa: --learning_rate until averaging starts, then a line to "
    "--swa_learning_rate at nine tenths of the epochs. constant: "
    "--learning_rate throughout. Both average.",
)
flags.DEFINE_bool(
    "compare_decay",
    None,
    "Whether to train a second branch from --epochs_before_swa on, which "
    "averages nothing and whose rate goes to zero in a line.",
)
flags.DEFINE_bool(
    "keep_weights",
    None,
    "Whether to keep the weights of each epoch averaged, their average and "
    "the decayed weights, for `benchmarks.figures`, in files in `weights`.",
)
_integer("epochs_before_swa", "Epochs before the first one averaged.")
_integer("epochs", "Epochs in all.")
_integer("batch_size", "Images in a step.")
_float("learning_rate", "The rate at the start.")
_float("swa_learning_rate", "The rate at the end, with --strategy=swa.")
_integer("refit_samples", "Training images for each refit of statistics.")
_integer(
    "evaluate_every",
    "Epochs from one evaluation on the validation images to the next; the "
    "last epoch always is evaluated.",
)
_integer("seed", "Of the split, the weights, the order, the augmentation.")
_enum(
    "precision",
    "mixed_bfloat16: for processors and GPUs that compute in bfloat16; others "
    "are slower with it.",
)
_enum(
    "distribution",
    "mirrored: a share of each batch on each of --num_replicas GPUs or, "
    "without a GPU, logical CPUs. Batch norm then trains with the statistics "
    "of a replica's share, so the figures are others than on one device.",
)
_integer("num_replicas", "Replicas, with --distribution=mirrored.")
flags.DEFINE_string(
    "output_dir", None, "Default: runs/<preset>. It must be new or empty."
)
flags.DEFINE_bool("resume", False, "Go on with the run in --output_dir.")


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark that the flags describe."""
    values = flags.FLAGS.flag_values_dict()
    if not flags.FLAGS["verbosity"].present:
        # A refit traces the network anew, on purpose, and TensorFlow warns of
        # it; what else it has to say would stand between epochs and table.
        tf.get_logger().setLevel("ERROR")
        logging.set_verbosity(logging.WARNING)

    def program() -> None:
        given = {name: values[name] for name in config_lib.FLAGS}
        config = config_lib.resolve(given)
        output_dir = values["output_dir"] or f"runs/{config.preset}"
        execute(config, output_dir, values["resume"], sys.argv[1:])

    try:
        command_line.run(argv, program)
    except KeyboardInterrupt:
        sys.exit("interrupted: give `--resume` to go on")


def execute(
    config: config_lib.Config,
    output_dir: str,
    resume: bool,
    arguments: Sequence[str],
) -> dict[str, Any]:
    """Runs, or finishes, or shows again, the benchmark in `output_dir`.

    Args:
        config: The settings.
        output_dir: Where the reports and checkpoints are.
        resume: Whether to go on with what is there.
        arguments: Of the command line, to be put on record.

    Returns:
        What `results.json` holds.

    Raises:
        BenchmarkError: As the parts of the benchmark do.
    """
    settings = {
        "flags": config_lib.as_flags(config),
        "stack": provenance.stack(),
    }
    directory = RunDirectory(output_dir, settings, resume)
    contents = directory.results()
    splits = None if contents else data.load(config)
    directory.start()
    if splits:
        tf.keras.utils.set_random_seed(config.seed)
        with precision(config.precision):
            records = training.run(config, splits, directory)
        contents = report.results(
            settings["flags"],
            records,
            {
                "command": _command(arguments),
                "output_dir": output_dir,
                "resumed": resume,
            },
        )
    report.write(directory, contents)
    report.show(contents)
    print(f"The reports are in {os.path.join(output_dir, '')}")
    return contents


@contextlib.contextmanager
def precision(policy: str) -> Iterator[None]:
    """Lets layers that are made inside compute by Keras's policy."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


def _command(arguments: Sequence[str]) -> str:
    """Returns the command of the whole run, however often it was resumed."""
    kept = [a for a in arguments if a not in ("--resume", "-resume")]
    return command_line.command("cifar10", kept)


if __name__ == "__main__":
    # The same numbers every time, whatever the threads do.
    tf.config.experimental.enable_op_determinism()
    app.run(main)
