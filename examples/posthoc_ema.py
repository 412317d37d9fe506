"""Chooses the length of an average of weights after the training.

A perceptron learns scikit-learn's digits by SGD at a constant rate; 20 % of the
labels are random, so that it never rests. Two averages are kept in training,
with snapshots of both now and then. Afterwards the average of each length is
made from the snapshots (post-hoc EMA), and the one with the least loss on
validation images is compared with the trained weights on test images. Seeds 0,
1, 2, Keras 3: a test loss of 0.390, 0.498, 0.392 becomes 0.302, 0.282, 0.305.

    python -m examples.posthoc_ema --plot=posthoc_ema.png
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable

import numpy as np
import tensorflow as tf
from absl import app, flags
from matplotlib.figure import Figure

import swa_tf
from examples import data

BATCH_SIZE, LEARNING_RATE, RANDOM_LABELS = 20, 0.5, 0.2
WIDTHS, BETWEEN = (0.05, 0.2), 0.1  # of snapshots, and of one to compare
LENGTHS = np.geomspace(0.03, 0.25, 9)
FLAGS = flags.FLAGS
flags.DEFINE_integer("epochs", 10, "Epochs to train.", lower_bound=1)
flags.DEFINE_integer("snapshots", 16, "Of each average.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of split, weights, order.", lower_bound=0)
flags.DEFINE_string("plot", None, "A PNG file to write the curves to.")


def make_model() -> tf.keras.Model:
    hidden = [tf.keras.layers.Dense(128, "relu") for _ in range(2)]
    logits = tf.keras.layers.Dense(data.CLASSES)
    model = tf.keras.Sequential([tf.keras.Input([64]), *hidden, logits])
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.SGD(LEARNING_RATE), loss)
    return model


def train(
    model: tf.keras.Model, learned: data.Pair, folder: str
) -> swa_tf.PowerFunctionAverage:
    """Trains; keeps snapshots in the folder; returns the average between."""
    averages = [swa_tf.PowerFunctionAverage(width) for width in WIDTHS]
    between = swa_tf.PowerFunctionAverage(BETWEEN)
    managers = [
        tf.train.CheckpointManager(
            tf.train.Checkpoint(model=model, average=average),
            os.path.join(folder, str(average.relative_width)),
            max_to_keep=None,
        )
        for average in averages
    ]

    @tf.function
    def step(rows: tf.Tensor, labels: tf.Tensor) -> None:
        weights = model.trainable_variables
        with tf.GradientTape() as tape:
            loss = model.loss(labels, model(rows, training=True))
        gradients = tape.gradient(loss, weights)
        model.optimizer.apply_gradients(zip(gradients, weights))
        for average in [*averages, between]:
            average.apply(weights)

    dataset = tf.data.Dataset.from_tensor_slices(learned)
    dataset = dataset.shuffle(len(learned[1]), FLAGS.seed)
    dataset = dataset.batch(BATCH_SIZE, drop_remainder=True)
    n_steps = FLAGS.epochs * len(dataset)
    for i, batch in enumerate(dataset.repeat(FLAGS.epochs), start=1):
        step(*batch)
        if i * FLAGS.snapshots % n_steps < FLAGS.snapshots:  # the last is one
            for average, manager in zip(averages, managers):
                with swa_tf.averaged_weights(average, model):
                    manager.save(checkpoint_number=average.n_models)
    return between


def norm(arrays: Iterable[np.ndarray]) -> float:
    return float(np.linalg.norm([np.linalg.norm(array) for array in arrays]))


def draw(path: str, rows: list[list[float]], trained: list[float]) -> None:
    """The loss over the length; dotted that of the trained weights."""
    figure = Figure((6.0, 4.0), layout="constrained")
    panel = figure.subplots()
    for i, part in enumerate(["validation", "test"]):
        losses = [row[i] for row in rows]
        panel.plot(LENGTHS, losses, ".-", color=f"C{i}", label=part)
        panel.axhline(trained[i], ls=":", color=f"C{i}")
    panel.set(xlabel="relative width of the average", ylabel="loss")
    panel.legend()
    figure.savefig(path, format="png", dpi=150)


def main(_: list[str]) -> None:
    if FLAGS.plot and not os.path.isdir(os.path.dirname(FLAGS.plot) or "."):
        raise app.UsageError(f"No such directory: --plot={FLAGS.plot}")
    learned, held_out = data.load_rows("digits", None, FLAGS.seed)
    parts = [(held_out[0][i::2], held_out[1][i::2]) for i in range(2)]
    random = np.random.default_rng([FLAGS.seed, 1])
    drawn = random.integers(data.CLASSES, size=len(learned[1]))
    chosen = random.random(len(drawn)) < RANDOM_LABELS
    learned = learned[0], np.where(chosen, drawn, learned[1])
    tf.keras.utils.set_random_seed(FLAGS.seed)
    model = make_model()

    def losses() -> list[float]:
        return [model.evaluate(*part, verbose=0) for part in parts]

    checkpoint = tf.train.Checkpoint(model=model)
    with tempfile.TemporaryDirectory() as folder:
        between = train(model, learned, folder)
        trained = losses()
        folders = [os.path.join(folder, str(width)) for width in WIDTHS]
        snapshots = [p for f in folders for p in swa_tf.checkpoints_in(f)]

        def load(length: float) -> None:
            output = os.path.join(folder, "posthoc", f"{length:.4f}")
            swa_tf.posthoc_average(snapshots, length, output)
            checkpoint.read(output).expect_partial()

        load(BETWEEN)
        weights = [w.numpy() for w in model.trainable_variables]
        kept = [average.numpy() for _, average in between.averaged]
        error = norm(np.subtract(*p) for p in zip(weights, kept)) / norm(kept)
        rows = []
        for length in LENGTHS:
            load(length)
            rows.append(losses())
    print(f"{'relative width':14s} {'validation':>10s} {'test':>10s}")
    names = [*(f"{length:.3f}" for length in LENGTHS), "trained"]
    for name, row in zip(names, [*rows, trained]):
        print(f"{name:14s}", *(f"{loss:10.4f}" for loss in row))
    best = min(range(len(rows)), key=lambda i: rows[i][0])
    print(f"off from the average kept at {BETWEEN:g}: {error:.1e}, relative")
    change = rows[best][1] - trained[1]
    print(f"width {LENGTHS[best]:.3f} changed the test loss by {change:+.4f}")
    if FLAGS.plot:
        draw(FLAGS.plot, rows, trained)


if __name__ == "__main__":
    tf.config.experimental.enable_op_determinism()
    app.run(main)
