r"""The automatic mode: SWA by steps against the best validation checkpoint.

A simplified VGG (64-64-M-128-128-M-256-256-M, three dense layers, `--width` for
64; no batch norm to refit) learns with Adam at a constant rate. Each compiled
step calls `swa.apply`, which averages after step `--swa_start`, then every
`--swa_freq` steps. The last, the best and the averaged weights are compared.

    python -m examples.vgg_cifar10
    python -m examples.vgg_cifar10 --dataset=cifar10 --data_dir=../shared/data \
        --max_samples=20000 --batch_size=64 --swa_start=3750 --swa_freq=50

The first takes half a minute, the second seven (16,000 real images, two cores).
Its test accuracies in % (TensorFlow 2.21, Keras 3.15; the rate chosen before by
the trained weights' validation loss, with seed 100, of 0.0005, 0.001, 0.002):

    --seed              0      1      2
    last            70.64  68.06  70.79
    best validation 70.64  71.04  70.79
    SWA             72.11  72.26  71.67
"""

from __future__ import annotations

import os

import tensorflow as tf
from absl import app, flags
from matplotlib.figure import Figure

import swa_tf
from benchmarks.cifar10 import config, data
from benchmarks.common import errors

FLAGS = flags.FLAGS
flags.DEFINE_enum("dataset", "digits", ["digits", "cifar10"], "What to learn.")
flags.DEFINE_string("data_dir", None, "Where CIFAR-10 is, if not downloaded.")
flags.DEFINE_integer("max_samples", None, "Images to learn and validate with.")
flags.DEFINE_integer("width", 16, "Channels of the first convolution.")
flags.DEFINE_integer("epochs", 30, "Epochs to train.")
flags.DEFINE_integer("batch_size", 32, "Images a step.")
flags.DEFINE_float("learning_rate", 0.001, "Adam's constant rate.")
flags.DEFINE_integer("swa_start", 500, "First step to average.", lower_bound=0)
flags.DEFINE_integer("swa_freq", 10, "Steps between averages.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of the split, the weights and the order.")
flags.DEFINE_string("plot", None, "A PNG file to write the curves to.")


def make_model(shape: tuple[int, ...], width: int) -> tf.keras.Model:
    """The simplified VGG for images of `shape`, [height, width, channels]."""
    layers = [tf.keras.Input(shape)]
    for channels in (width, 2 * width, 4 * width):
        for _ in range(2):
            convolution = tf.keras.layers.Conv2D(channels, 3, padding="same")
            layers += [convolution, tf.keras.layers.ReLU()]
        layers.append(tf.keras.layers.MaxPooling2D())
    layers.append(tf.keras.layers.Flatten())
    for _ in range(2):
        layers.append(tf.keras.layers.Dense(8 * width, activation="relu"))
    layers.append(tf.keras.layers.Dense(data.CLASSES))
    return tf.keras.Sequential(layers)


def train(splits: data.Splits) -> tuple[dict[str, float], dict[str, list]]:
    """Test accuracies; of each epoch the validation loss and accuracy."""
    model = make_model(splits.train.images.shape[1:], FLAGS.width)
    weights = model.trainable_variables
    optimizer = tf.keras.optimizers.Adam(FLAGS.learning_rate)
    optimizer.build(weights)
    loss_of = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss_of, metrics=["accuracy"])  # For `evaluate` alone.
    when = swa_tf.AveragingSchedule(FLAGS.swa_start, FLAGS.swa_freq)
    swa = swa_tf.StochasticWeightAveraging(when=when)

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(images, training=True))
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights))
        swa.apply(weights)  # Every step: whether it is due, `when` says.

    def evaluate(examples: data.Examples) -> tuple[float, float]:
        batches = data.plain_batches(examples, batch_size=256)
        loss, accuracy = model.evaluate(batches, verbose=0)
        return loss, 100.0 * accuracy

    best = swa_tf.BackupVariables(weights)
    curves = {"trained": [], "averaged": []}
    for epoch in range(FLAGS.epochs):
        for images, labels in data.training_batches(
            splits, FLAGS.batch_size, FLAGS.seed, [epoch]
        ):
            step(images, labels)
        curves["trained"].append(evaluate(splits.validation))
        if curves["trained"][-1] == min(curves["trained"]):
            best.save()
        if int(swa.n_models) > 0:
            with swa_tf.averaged_weights(swa, model):
                curves["averaged"].append(evaluate(splits.validation))
        losses = [f"{k} {v[-1][0]:.4f}" for k, v in curves.items() if v]
        print(f"epoch {epoch:2d}  validation loss:", *losses, flush=True)

    results = {"last": evaluate(splits.test)[1]}
    best.restore()
    results["best validation"] = evaluate(splits.test)[1]
    with swa_tf.averaged_weights(swa, model):
        results["SWA"] = evaluate(splits.test)[1]
    return results, curves


def draw(path: str, curves: dict[str, list]) -> None:
    figure = Figure(figsize=(7.0, 6.0), layout="constrained")
    epochs = range(len(curves["trained"]))
    best = min(curves["trained"])
    for i, name in enumerate(["validation loss", "validation accuracy (%)"]):
        panel = figure.add_subplot(2, 1, i + 1, xlabel="epoch", ylabel=name)
        for label, curve in curves.items():
            panel.plot(epochs[-len(curve) :], [*zip(*curve)][i], label=label)
        panel.plot(curves["trained"].index(best), best[i], "o", label="best")
        panel.legend()
    figure.savefig(path, format="png")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    if FLAGS.plot and not os.path.isdir(os.path.dirname(FLAGS.plot) or "."):
        raise app.UsageError(f"No such directory: --plot={FLAGS.plot}")
    settings = {n: FLAGS[n].value for n in config.FLAGS if n in FLAGS}
    settings.update(refit_samples=1, epochs_before_swa=0)  # Not used.
    try:
        splits = data.load(config.resolve(settings))
    except errors.BenchmarkError as error:
        raise app.UsageError(str(error)) from error
    steps = FLAGS.epochs * (len(splits.train) // FLAGS.batch_size)
    if (start := FLAGS.swa_start) >= steps:
        wanted = f"`--swa_start` must be less than the {steps} steps"
        raise app.UsageError(f"{wanted}. Received: --swa_start={start}")
    tf.keras.utils.set_random_seed(FLAGS.seed)
    results, curves = train(splits)
    for name, accuracy in results.items():
        print(f"{name:16s} test accuracy {accuracy:.2f} %")
    gain = results["SWA"] - results["best validation"]
    print(f"averaging gained {gain:+.2f} points over the best checkpoint")
    if FLAGS.plot:
        draw(FLAGS.plot, curves)


if __name__ == "__main__":
    tf.config.experimental.enable_op_determinism()
    app.run(main)
