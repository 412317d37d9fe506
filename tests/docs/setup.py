"""The names that the pages of the documentation take for granted.

`names` makes those of every page, `PREPARE` those of single pages.
"""

import shlex

import numpy as np
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

import swa_tf
from swa_tf import average_checkpoints_main


def names():
    """A small model with batch norm, its optimizer, loss and data."""
    inputs = np.random.default_rng(0).normal(size=[8, 4]).astype(np.float32)
    labels = np.arange(8) % 3
    loss_fn = tf.keras.losses.SparseCategoricalCrossentropy(True)

    def make_model():
        model = tf.keras.Sequential(
            [
                tf.keras.layers.Dense(5),
                tf.keras.layers.BatchNormalization(),
                tf.keras.layers.Dense(3),
            ]
        )
        model.build([None, 4])
        model.compile("sgd", loss_fn, jit_compile=False)
        return model

    model = make_model()
    dataset = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(4)
    optimizer = tf.keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    return {
        "__name__": "document",
        "dataset": dataset,
        "epochs": 4,
        "loss_fn": loss_fn,
        "make_model": make_model,
        "model": model,
        "np": np,
        "optimizer": optimizer,
        "run_command": _run_command,
        "swa_start": 1,
        "swa_tf": swa_tf,
        "tf": tf,
        "validation": dataset,
    }


def _run_command(line):
    with flagsaver.flagsaver():
        assert (
            average_checkpoints_main.main(flags.FLAGS(shlex.split(line))) == 0
        )


def _train_steps(given):
    """A step that trains, and batches for it."""
    model, optimizer, loss_fn = (
        given[name] for name in ("model", "optimizer", "loss_fn")
    )

    def train_step(images, labels):
        with tf.GradientTape() as tape:
            loss = loss_fn(labels, model(images, training=True))
        weights = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights))
        return loss

    given["train_step"] = train_step


def _checkpoints(given):
    """Three checkpoints of TensorFlow in `run/`, and of Keras in `keras/`."""
    given["checkpoint"] = tf.train.Checkpoint(model=given["model"])
    manager = tf.train.CheckpointManager(given["checkpoint"], "run", None)
    tf.io.gfile.makedirs("keras")
    for number in range(1, 4):
        given["model"].fit(given["dataset"], verbose=0)
        manager.save()
        given["model"].save_weights(f"keras/{number}.weights.h5")


def _graph(given):
    """A model in a graph of TensorFlow 1."""
    v1 = tf.compat.v1

    def build_graph():
        x = tf.constant([[1.0, 2.0]])
        w = v1.get_variable("w", [2, 1], initializer=v1.ones_initializer())
        loss = tf.reduce_sum(tf.matmul(x, w) ** 2)
        return loss, v1.train.GradientDescentOptimizer(0.01).minimize(loss)

    given["build_graph"] = build_graph
    given["steps"] = 4


def _keras(given):
    """20 steps in an epoch."""
    given["dataset"] = given["dataset"].repeat(10)


def _distribution(given):
    def make_model():
        model = tf.keras.Sequential([tf.keras.layers.Dense(3)])
        model.build([None, 4])
        return model

    def train_step(_):
        for weight in given["model"].trainable_variables:
            weight.assign_add(tf.ones_like(weight))

    weights = {}
    for worker, n_models in enumerate([1, 3]):
        model = make_model()
        weights[n_models] = [w.numpy() for w in model.trainable_variables]
        swa = swa_tf.StochasticWeightAveraging()
        for _ in range(n_models):
            swa.apply(model.trainable_variables)
        saved = tf.train.Checkpoint(model=model, swa=swa)
        saved.write(f"worker-{worker}/ckpt-9")
    given.update(
        batches=None,
        coordinator=_AtOnce(),
        make_model=make_model,
        steps=2,
        train_step=train_step,
        weights_of_workers=weights,
    )


class _AtOnce:
    """A coordinator without workers."""

    def schedule(self, function, args):
        function(*args)

    def join(self):
        pass


_FROM, _GUIDES = "docs/coming-from", "docs/guides"

PREPARE = {
    "README.md": (_train_steps, _graph),
    "docs/distribution.md": (_distribution,),
    f"{_FROM}/addons.md": (_keras, _train_steps),
    f"{_FROM}/averaging-scripts.md": (_checkpoints,),
    f"{_FROM}/keras.md": (_keras,),
    f"{_FROM}/lightning.md": (_keras,),
    f"{_FROM}/tensorflow-ema.md": (_graph,),
    f"{_FROM}/torch.md": (_keras, _train_steps),
    f"{_GUIDES}/gans.md": (_train_steps,),
    f"{_GUIDES}/hyperparameters.md": (_train_steps,),
    f"{_GUIDES}/resume.md": (_train_steps,),
    f"{_GUIDES}/soups.md": (_checkpoints,),
    "docs/keras.md": (_keras,),
}
