"""Averages the weights in `model.fit`, under three plans of the learning rate.

A perceptron with batch norm and dropout learns handwritten digits, once under
each plan. Constant: the rate stays high, and the weights after each epoch are
averaged. Cyclic: the rate falls in each cycle and jumps up again; the weights
at its low end are averaged. Descending: the rate falls once; the weights after
each epoch are averaged. One callback sets the rate, averages, validates trained
and averaged weights, and leaves the average in the model.

    python -m examples.keras_fit --plot=keras_fit.png

learns scikit-learn's digits, or what `--data_dir` has of MNIST, in the files
`t10k-images-idx3-ubyte.gz` and the like. A quarter tests. Of the digits that is
450 images. With seeds 0, 1 and 2, averaging changes the accuracy of the
constant plan by one to four images, up or down, and that of the others by at
most one: where the rate ends low, the weights that are averaged are nearly the
same. The numbers differ between machines.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import app, flags
from matplotlib.figure import Figure

import swa_tf
from examples import data
from swa_tf import schedules

HIGH_RATE, LOW_RATE, LOSS = 1.0, 0.05, "sparse_categorical_crossentropy"
BATCH_SIZE = 50  # With 32 the last has 3 digits: noise, for batch norm.
FLAGS = flags.FLAGS
flags.DEFINE_string("data_dir", None, "Where MNIST is, to learn it instead.")
PLANS = ["constant", "cyclic", "descending"]
flags.DEFINE_enum("plan", "all", [*PLANS, "all"], "Of the learning rate.")
flags.DEFINE_integer("epochs", 16, "Epochs to train.", lower_bound=1)
flags.DEFINE_integer("swa_start", 7, "Epochs before SWA.", lower_bound=0)
flags.DEFINE_integer("period", 3, "Epochs of a cycle.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of split, weights, order.", lower_bound=0)
flags.DEFINE_string("plot", None, "A PNG file to write the curves to.")


def make_plan(name: str) -> tuple[Callable, int, int]:
    """The rate of each epoch, the first to average, and every how many."""
    rates, start, period = (HIGH_RATE, LOW_RATE), FLAGS.swa_start, FLAGS.period
    if name == "constant":
        return lambda epoch: HIGH_RATE, start, 1
    if name == "cyclic":
        # The last epoch of a cycle has the low rate: average after that one.
        rate = schedules.Cyclical(*rates, period, start)
        return rate, start + period - 1, period
    return schedules.published_plan(*rates, start, FLAGS.epochs), start, 1


def train(name: str, learned: tuple, test: tuple) -> tuple[float, dict]:
    """Trains; returns the averaged model's test accuracy, and all logs."""
    rate, start, period = make_plan(name)
    tf.keras.utils.set_random_seed(FLAGS.seed)
    model = tf.keras.Sequential()
    for _ in range(2):
        model.add(tf.keras.layers.Dense(128, use_bias=False))
        model.add(tf.keras.layers.BatchNormalization())
        model.add(tf.keras.layers.ReLU())
        model.add(tf.keras.layers.Dropout(0.2))
    model.add(tf.keras.layers.Dense(10, activation="softmax"))
    model.compile("sgd", LOSS, metrics=["accuracy"])
    refit = tf.data.Dataset.from_tensor_slices(learned[0]).batch(2048)
    swa = swa_tf.SWACallback(start, period, schedule=rate, refit_data=refit)
    history = model.fit(
        *learned,
        batch_size=BATCH_SIZE,
        epochs=FLAGS.epochs,
        validation_data=test,  # Nothing is chosen by it.
        callbacks=[swa],
        verbose=2,
    )
    # Here the model is the average, ready to be saved.
    return model.evaluate(*test, verbose=0)[1], history.history


def draw(name: str, logs: dict, panels: np.ndarray) -> None:
    rate, start, period = make_plan(name)
    schedules.plot_schedule(rate, FLAGS.epochs, panels[0])
    epochs = range(start, FLAGS.epochs)
    panels[0].plot(epochs[::period], [rate(i) for i in epochs[::period]], "o")
    panels[0].set(title=name, xlabel="epoch")
    panels[1].plot(logs["val_accuracy"], label="trained")
    panels[1].plot(epochs, logs["swa_val_accuracy"][start:], label="averaged")
    panels[1].set(xlabel="epoch", ylabel="test accuracy")
    panels[1].legend()


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    needed = FLAGS.swa_start + FLAGS.period
    if needed > FLAGS.epochs:
        raise app.UsageError(f"The plans need `--epochs` >= {needed}")
    if FLAGS.plot and not os.path.isdir(os.path.dirname(FLAGS.plot) or "."):
        raise app.UsageError(f"No such directory: --plot={FLAGS.plot}")
    try:
        dataset = "mnist" if FLAGS.data_dir else "digits"
        learned, test = data.load_rows(dataset, FLAGS.data_dir, FLAGS.seed)
    except data.DataError as error:
        raise app.UsageError(str(error)) from error
    names = PLANS if FLAGS.plan == "all" else [FLAGS.plan]
    figure = Figure(figsize=(5.0 * len(names), 6.0), layout="constrained")
    panels = figure.subplots(2, len(names), sharey="row", squeeze=False)
    results = {}
    for name, column in zip(names, panels.T):
        averaged, logs = train(name, learned, test)
        results[f"{name}, trained"] = logs["val_accuracy"][-1]
        results[f"{name}, averaged"] = averaged
        draw(name, logs, column)
    for name, accuracy in results.items():
        print(f"{name:20s} test accuracy {100 * accuracy:.2f} %")
    for name in names:
        gain = results[f"{name}, averaged"] - results[f"{name}, trained"]
        print(f"{name}: averaging changed it by {100 * gain:+.2f} points")
    if FLAGS.plot:
        figure.savefig(FLAGS.plot, format="png")


if __name__ == "__main__":
    app.run(main)
