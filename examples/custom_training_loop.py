"""Averages the weights in a hand-written training loop.

A small convolutional network learns scikit-learn's handwritten digits. From
epoch `--swa_start` on, the weights at the end of each epoch enter the average.
At the end three models are compared: the trained one, the averaged one with
the batch-norm statistics that happen to be there, and the averaged one with
statistics computed anew.

    python -m examples.custom_training_loop
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl import app, flags
from sklearn import datasets, model_selection

import swa_tf

FLAGS = flags.FLAGS
flags.DEFINE_integer("epochs", 12, "Epochs to train.", lower_bound=1)
flags.DEFINE_integer("swa_start", 6, "First epoch to average.", lower_bound=0)
flags.DEFINE_integer("batch_size", 64, "Images a batch.", lower_bound=1)
flags.DEFINE_float("learning_rate", 0.05, "Constant learning rate.")
flags.DEFINE_integer("seed", 0, "Seed of the weights and of the data.")


def make_model() -> tf.keras.Model:
    """Two convolutions with batch norm, for 8 x 8 images."""
    return tf.keras.Sequential(
        [
            tf.keras.Input([8, 8, 1]),
            tf.keras.layers.Conv2D(16, 3, use_bias=False),
            tf.keras.layers.BatchNormalization(),
            tf.keras.layers.ReLU(),
            tf.keras.layers.Conv2D(32, 3, use_bias=False),
            tf.keras.layers.BatchNormalization(),
            tf.keras.layers.ReLU(),
            tf.keras.layers.GlobalAveragePooling2D(),
            tf.keras.layers.Dense(10),
        ]
    )


def load_digits(
    seed: int, batch_size: int
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Training and test images in batches, as (image, label)."""
    images, labels = datasets.load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.float32) / 16.0
    split = model_selection.train_test_split(
        images, labels, test_size=0.25, stratify=labels, random_state=seed
    )
    train_images, test_images, train_labels, test_labels = split
    train = tf.data.Dataset.from_tensor_slices((train_images, train_labels))
    test = tf.data.Dataset.from_tensor_slices((test_images, test_labels))
    shuffled = train.shuffle(len(train_images), seed=seed)
    return shuffled.batch(batch_size), test.batch(256)


def accuracy(model: tf.keras.Model, data: tf.data.Dataset) -> float:
    metric = tf.keras.metrics.SparseCategoricalAccuracy()
    for images, labels in data:
        metric.update_state(labels, model(images, training=False))
    return float(metric.result())


def train(
    epochs: int,
    swa_start: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> dict[str, float]:
    """Trains, and returns the test accuracy of each of the three models."""
    tf.keras.utils.set_random_seed(seed)
    train_data, test_data = load_digits(seed, batch_size)
    model = make_model()
    optimizer = tf.keras.optimizers.SGD(learning_rate, momentum=0.9)
    optimizer.build(model.trainable_variables)
    loss_of = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    swa = swa_tf.StochasticWeightAveraging()

    @tf.function(reduce_retracing=True)
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(images, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return loss

    for epoch in range(epochs):
        losses = [float(step(images, labels)) for images, labels in train_data]
        if epoch >= swa_start:
            swa.apply(model.trainable_variables)
        print(f"epoch {epoch:2d}  loss {np.mean(losses):.4f}")

    results = {"trained": accuracy(model, test_data)}
    with swa_tf.averaged_weights(swa, model):
        results["averaged"] = accuracy(model, test_data)
        swa_tf.refit_batch_norm(model, train_data)
        results["averaged, refit"] = accuracy(model, test_data)
    # Here the model has its trained weights and statistics again.
    return results


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    if FLAGS.swa_start >= FLAGS.epochs:
        raise app.UsageError(
            "`--swa_start` must be less than `--epochs`. Received: "
            f"swa_start={FLAGS.swa_start}, epochs={FLAGS.epochs}"
        )
    results = train(
        FLAGS.epochs,
        FLAGS.swa_start,
        FLAGS.batch_size,
        FLAGS.learning_rate,
        FLAGS.seed,
    )
    for name, value in results.items():
        print(f"{name:16s} test accuracy {100 * value:.2f} %")
    gain = 100 * (results["averaged, refit"] - results["trained"])
    print(f"averaging and the refit changed it by {gain:+.2f} points")


if __name__ == "__main__":
    app.run(main)
