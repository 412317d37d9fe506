"""Averages checkpoints that a training run has left in a folder.

A small convolutional network learns with SGD and momentum; 20 % of the labels
are random, so that it never rests. Checkpoints from `--keep_from` on are
averaged; each classifies images held out, as it is and with batch-norm
statistics anew. Seeds 0 to 4, Keras 3: their mean 80 to 91 %, refit 85 to 91;
the average 89 to 95 %, refit 91 to 95: 4 to 9 points more in each of them.

    python -m examples.average_checkpoints
"""

from __future__ import annotations

import os
import tempfile

import numpy as np
import tensorflow as tf
from absl import app, flags
from matplotlib.figure import Figure

import swa_tf
from examples import data

REFIT_IMAGES = 10_000  # more would not be seen in the statistics
BATCH_SIZE, LEARNING_RATE = 50, 0.05
FLAGS = flags.FLAGS
flags.DEFINE_enum("dataset", "digits", data.NAMES, "What to learn.")
flags.DEFINE_string("data_dir", None, "Where MNIST or SVHN is, if it is here.")
flags.DEFINE_integer("train_size", None, "Images to learn.", lower_bound=1)
flags.DEFINE_integer("test_size", None, "Images to hold out.", lower_bound=1)
flags.DEFINE_float("random_labels", 0.2, "Share of them.", 0.0, 1.0)
flags.DEFINE_bool("batch_norm", True, "Whether to normalize convolutions.")
flags.DEFINE_integer("epochs", 20, "Epochs to train.", lower_bound=1)
flags.DEFINE_integer("keep_from", 10, "First epoch to keep.", lower_bound=0)
flags.DEFINE_integer("seed", 0, "Of split, weights, order.", lower_bound=0)
flags.DEFINE_string("output_dir", None, "A new folder; else a temporary one.")


def make_model(images: np.ndarray) -> tf.keras.Model:
    """Returns a model of images of this shape and range, with logits."""
    layers = [tf.keras.Input(images.shape[1:])]
    layers.append(tf.keras.layers.Rescaling(1.0 / images.max()))
    for channels in (32, 64):
        layers.append(tf.keras.layers.Conv2D(channels, 3))
        if FLAGS.batch_norm:
            layers.append(tf.keras.layers.BatchNormalization())
        layers.append(tf.keras.layers.ReLU())
    layers += [tf.keras.layers.MaxPooling2D(), tf.keras.layers.Flatten()]
    layers.append(tf.keras.layers.Dense(256, activation="relu"))
    layers.append(tf.keras.layers.Dense(data.CLASSES))
    model = tf.keras.Sequential(layers)
    model.compile(
        tf.keras.optimizers.SGD(LEARNING_RATE, momentum=0.9),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def train(model: tf.keras.Model, learned: data.Pair, folder: str) -> None:
    """Fits the model; writes checkpoints of epochs, named by their numbers."""
    checkpoint = tf.train.Checkpoint(model=model)
    manager = tf.train.CheckpointManager(checkpoint, folder, max_to_keep=None)

    def keep(epoch: int, logs: dict[str, float]) -> None:
        if epoch >= FLAGS.keep_from:
            manager.save(checkpoint_number=epoch)

    options = {"batch_size": BATCH_SIZE, "epochs": FLAGS.epochs, "verbose": 0}
    callback = tf.keras.callbacks.LambdaCallback(on_epoch_end=keep)
    model.fit(*learned, callbacks=[callback], **options)


def accuracies(
    model: tf.keras.Model, path: str, learned: data.Pair, test: data.Pair
) -> list[float]:
    """Returns the accuracy of a checkpoint in %, as saved and after a refit."""
    checkpoint = tf.train.Checkpoint(model=model)
    checkpoint.restore(path).assert_existing_objects_matched().expect_partial()
    results = [100.0 * model.evaluate(*test, verbose=0)[1]]
    if FLAGS.batch_norm:
        images = tf.data.Dataset.from_tensor_slices(learned[0][:REFIT_IMAGES])
        swa_tf.refit_batch_norm(model, images.batch(500))
        results.append(100.0 * model.evaluate(*test, verbose=0)[1])
    return results


def draw(path: str, titles: list[str], table: dict[str, list[float]]) -> None:
    """A panel for each column of the table, whose last rows are lines."""
    figure = Figure((1.0 + 4.0 * len(titles), 4.0), layout="constrained")
    panels = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
    epochs = range(FLAGS.keep_from, FLAGS.epochs)
    for panel, title, column in zip(panels, titles, zip(*table.values())):
        *points, mean, averaged = column
        panel.plot(epochs, points, "o", color="C0", label="checkpoints")
        panel.axhline(mean, ls="--", color="C0", label="their mean")
        panel.axhline(averaged, ls="-.", color="C1", label="averaged weights")
        panel.set(title=title, xlabel="epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel("held-out accuracy (%)")
    panels[0].legend()
    figure.savefig(path, format="png", dpi=150)


def main(_: list[str]) -> None:
    first, end, folder = FLAGS.keep_from, FLAGS.epochs, FLAGS.output_dir
    if first >= end:
        wanted = f"`--keep_from` must be < {end}"
        raise app.UsageError(f"{wanted}. Received: --keep_from={first}")
    if folder and os.path.lexists(folder):
        wanted = "`--output_dir` must not exist"
        raise app.UsageError(f"{wanted}. Received: --output_dir={folder}")
    try:
        names = ["dataset", "data_dir", "seed", "train_size", "test_size"]
        learned, test = data.load(*(FLAGS[name].value for name in names))
    except data.DataError as error:
        raise app.UsageError(str(error)) from error
    random = np.random.default_rng([FLAGS.seed, 1])
    drawn = random.integers(data.CLASSES, size=len(learned[1]))
    chosen = random.random(len(drawn)) < FLAGS.random_labels
    learned = learned[0], np.where(chosen, drawn, learned[1])
    output_dir = FLAGS.output_dir or tempfile.mkdtemp(prefix="checkpoints-")

    tf.keras.utils.set_random_seed(FLAGS.seed)
    model = make_model(learned[0])
    folder = os.path.join(output_dir, "checkpoints")
    train(model, learned, folder)
    average = os.path.join(output_dir, "average")
    swa_tf.average_checkpoints(folder, average)
    paths = swa_tf.checkpoints_in(folder)
    rows = [accuracies(model, path, learned, test) for path in paths]
    table = {f"epoch {FLAGS.keep_from + i}": row for i, row in enumerate(rows)}
    table["mean"] = np.mean(rows, axis=0).tolist()
    table["averaged weights"] = accuracies(model, average, learned, test)
    titles = ["as saved", "refit"][: len(rows[0])]
    print(f"{len(learned[1])} images learned, {len(test[1])} held out")
    print(f"{'accuracy in %':18s}", *(f"{title:>10s}" for title in titles))
    for name, row in table.items():
        print(f"{name:18s}", *(f"{value:10.2f}" for value in row))
    gain = table["averaged weights"][-1] - table["mean"][-1]
    print(f"averaging gained {gain:+.2f} points over the mean checkpoint")
    plot = os.path.join(output_dir, "accuracies.png")
    draw(plot, titles, table)
    print(f"Written: {plot}")


if __name__ == "__main__":
    tf.config.experimental.enable_op_determinism()
    app.run(main)
