"""Compares the confidence of one model, of SWA and of SWAG with the truth.

A small convolutional network learns 70 of scikit-learn's digits from 0 to 6, at
a constant rate. Mean, variance and last deviations of its weights after each
epoch are a Gaussian over networks (SWAG). Other images are predicted by the
last weights, by the mean (SWA), and by 30 networks drawn from the Gaussian,
each with batch-norm statistics of its own, whose probabilities are averaged.

A prediction is calibrated if 80 % of those made with a confidence of 80 % are
right; the expected calibration error (ECE) is the mean distance from that. The
images of 7, 8 and 9 are of no class that was learned, and should make it
unsure. The entropy of predictions is printed for both kinds of images, with the
area under the ROC curve if it is to tell them apart (0.5 is chance).

    python -m examples.swag_calibration --plot=swag_calibration.png
"""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf
from absl import app, flags
from matplotlib.figure import Figure
from sklearn import metrics

import swa_tf
from examples import data

KNOWN, BINS, BATCH_SIZE = 7, 10, 25
FLAGS = flags.FLAGS
flags.DEFINE_integer("train_size", 70, "Images to learn.", lower_bound=25)
flags.DEFINE_integer("epochs", 60, "Epochs to train.", lower_bound=2)
flags.DEFINE_integer("swa_start", 30, "Epochs before SWAG.", lower_bound=0)
flags.DEFINE_float("learning_rate", 0.3, "Constant learning rate.")
flags.DEFINE_integer("seed", 0, "Of split, weights, order.", lower_bound=0)
flags.DEFINE_string("plot", None, "A PNG file for the reliability curves.")


def make_model() -> tf.keras.Model:
    """Two convolutions with batch norm, and dropout, for 8 x 8 images."""
    model = tf.keras.Sequential([tf.keras.Input([8, 8, 1])])
    for filters in (16, 32):
        model.add(tf.keras.layers.Conv2D(filters, 3, use_bias=False))
        model.add(tf.keras.layers.BatchNormalization())
        model.add(tf.keras.layers.ReLU())
    model.add(tf.keras.layers.GlobalAveragePooling2D())
    model.add(tf.keras.layers.Dropout(0.3))
    model.add(tf.keras.layers.Dense(KNOWN, activation="softmax"))
    return model


def predictions(learned: tuple, images: np.ndarray) -> dict[str, np.ndarray]:
    """Trains, and returns the probabilities that each of the three gives."""
    tf.keras.utils.set_random_seed(FLAGS.seed)
    model = make_model()
    sgd = tf.keras.optimizers.SGD(FLAGS.learning_rate, momentum=0.9)
    model.compile(sgd, "sparse_categorical_crossentropy")
    swag = swa_tf.SWAGaussian(rank=20)
    refit_data = [learned[0]]
    callback = swa_tf.SWACallback(
        FLAGS.swa_start,
        averages=swag,
        refit_data=refit_data,
        final_weights="trained",
        verbose=0,
    )
    settings = {"batch_size": BATCH_SIZE, "epochs": FLAGS.epochs, "verbose": 0}
    model.fit(*learned, callbacks=[callback], **settings)
    found = {}
    with swa_tf.averaged_weights(swag, model, refit_data=refit_data):
        found["SWA"] = model.predict(images, verbose=0)
    found["SWAG"] = swa_tf.predict_samples(
        swag, model, images, range(30), refit_data=refit_data
    )
    swa_tf.refit_batch_norm(model, refit_data)
    return {"one model": model.predict(images, verbose=0), **found}


def reliability(p: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Confidence, accuracy and share of each bin that is used, and the ECE."""
    confidence, is_right = p.max(axis=1), p.argmax(axis=1) == labels
    places = np.minimum((BINS * confidence).astype(int), BINS - 1)
    curve = np.array(
        [
            (confidence[bin].mean(), is_right[bin].mean(), bin.mean())
            for bin in (places == place for place in np.unique(places))
        ]
    )
    return curve, float(curve[:, 2] @ np.abs(curve[:, 0] - curve[:, 1]))


def entropy(p: np.ndarray) -> np.ndarray:
    """In nats, of each prediction; log 7 = 1.95 if it knows nothing."""
    return -np.sum(p * np.log(np.maximum(p, 1e-30)), axis=1)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    if FLAGS.epochs < FLAGS.swa_start + 2:
        raise app.UsageError(
            "`--epochs` must be at least `--swa_start` + 2. Received: "
            f"epochs={FLAGS.epochs}, swa_start={FLAGS.swa_start}"
        )
    if FLAGS.plot and not os.path.isdir(os.path.dirname(FLAGS.plot) or "."):
        raise app.UsageError(f"No such directory: --plot={FLAGS.plot}")
    (images, labels), (others, other_labels) = data.load(
        "digits", None, FLAGS.seed
    )
    images = np.concatenate([images, others]).astype(np.float32) / 16.0
    labels = np.concatenate([labels, other_labels])
    known = np.flatnonzero(labels < KNOWN)
    learned, held_out = np.split(known, [FLAGS.train_size])
    unseen = np.flatnonzero(labels >= KNOWN)
    found = predictions(
        (images[learned], labels[learned]),
        images[np.concatenate([held_out, unseen])],
    )
    n, truth = len(held_out), labels[held_out]
    errors, figure = {}, Figure(figsize=(5.0, 5.0))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "k:", label="calibrated")
    print(f"{n} images of known digits, {len(unseen)} of unseen ones")
    for name, p in found.items():
        curve, errors[name] = reliability(p[:n], truth)
        axes.plot(*curve[:, :2].T, "o-", label=name)
        h, accuracy = entropy(p), np.mean(p[:n].argmax(axis=1) == truth)
        auroc = metrics.roc_auc_score(np.arange(len(h)) >= n, h)
        print(f"{name:9s} test accuracy {100 * accuracy:.2f} %")
        print(
            f"{name:9s} ECE {100 * errors[name]:.2f} %, entropy "
            f"{h[:n].mean():.3f}, of unseen {h[n:].mean():.3f}, "
            f"AUROC {auroc:.4f}"
        )
    axes.set(xlabel="confidence", ylabel="accuracy")
    axes.legend()
    gains = [100 * (errors["SWAG"] - e) for e in list(errors.values())[:2]]
    print(
        f"SWAG changed the calibration error of one model by {gains[0]:+.2f} "
        f"points, of SWA by {gains[1]:+.2f} points"
    )
    if FLAGS.plot:
        figure.savefig(FLAGS.plot, format="png")


if __name__ == "__main__":
    app.run(main)
