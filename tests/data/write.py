"""Writes files that tests load, and the exact numbers that they hold.

Run it on each stack; it writes into the folder of that stack.

    python -m tests.data.write checkpoints  # to be averaged
    python -m tests.data.write training     # averages, optimizers, a backup

The expected numbers are computed in float64 numpy.
"""

import contextlib
import json
import pathlib
import sys

import numpy as np
import tensorflow as tf

import swa_tf

KERAS_3 = getattr(tf.keras, "__version__", "2").startswith("3.")
STACK = "tensorflow-{}-{}".format(
    "2.15" if tf.__version__.startswith("2.15.") else "newest",
    "keras3" if KERAS_3 else "keras2",
)


def write_checkpoints(folder):
    """Two checkpoints in each format, and the means of their weights."""
    tf.keras.utils.set_random_seed(0)
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Input([3]),
            tf.keras.layers.Dense(4, name="dense"),
            tf.keras.layers.BatchNormalization(name="bn"),
        ],
        name="model",
    )
    model.compile(
        tf.keras.optimizers.SGD(0.1, momentum=0.9),
        tf.keras.losses.MeanSquaredError(),
    )
    checkpoint = tf.train.Checkpoint(
        model=model,
        optimizer=model.optimizer,
        step=tf.Variable(0, dtype=tf.int64),
    )
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=[16, 3]), rng.normal(size=[16, 4])
    history = []
    for i in (1, 2):
        model.fit(inputs, targets, verbose=0)
        checkpoint.step.assign(i)
        history.append([w.numpy().astype(np.float64) for w in model.weights])
        checkpoint.write(str(folder / f"ckpt-{i}"))
        model.save_weights(folder / f"model-{i}.weights.h5")
        model.save(folder / f"model-{i}.keras")
    means = [((a + b) / 2).tolist() for a, b in zip(*history)]
    (folder / "means.json").write_text(json.dumps(means), encoding="utf-8")


RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=[8, 3]).astype(np.float32)
TARGETS = RNG.normal(size=[8, 1]).astype(np.float32)


def make_model(optimizer):
    """A model of three layers, compiled."""
    tf.keras.utils.set_random_seed(0)
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Input([3]),
            tf.keras.layers.Dense(2, name="dense"),
            swa_tf.MovingFreeBatchNormalization(name="bn"),
            tf.keras.layers.Dense(1, name="last"),
        ],
        name="model",
    )
    model.compile(optimizer, tf.keras.losses.MeanSquaredError())
    return model


def make_averages():
    """The checkpoint of a training that averages in two ways."""
    model = make_model(tf.keras.optimizers.SGD(0.1, momentum=0.9))
    when = swa_tf.AveragingSchedule(start=1, period=2)
    return tf.train.Checkpoint(
        model=model,
        optimizer=model.optimizer,
        swa=swa_tf.StochasticWeightAveraging(when=when),
        ema=swa_tf.ExponentialMovingAverage(0.9),
    )


def write_averages(folder):
    """A checkpoint after six steps, of which SWA averages 1, 3 and 5."""
    training = make_averages()
    weights = training.model.trainable_variables
    history = []
    for _ in range(6):
        training.model.train_on_batch(INPUTS, TARGETS)
        training.swa.apply(weights)
        training.ema.apply(weights)
        history.append(_exact(weights))
    training.write(str(folder / "averages"))
    swa, ema = [], []
    for values in zip(*history):
        swa.append(np.mean(values[1::2], axis=0))
        average = values[0]
        for value in values[1:]:
            average = average + (1.0 - 0.9) * (value - average)
        ema.append(average)
    return {
        "weights": history[-1],
        # Momentum alone moves the weights where the gradient is zero.
        "next": [b + 0.9 * (b - a) for a, b in zip(*history[-2:])],
        "swa": swa,
        "ema": ema,
    }


OPTIMIZERS = {
    "momentumw": lambda: swa_tf.optimizers.MomentumW(
        0.1, momentum=0.9, weight_decay=0.01
    ),
    "adamw": lambda: swa_tf.optimizers.AdamW(0.1, weight_decay=0.01),
}


def momentumw(weight, gradients):
    """The weight after each step, from the definition of `MomentumW`."""
    velocity = 0.0
    for gradient in gradients:
        velocity = 0.9 * velocity - 0.1 * gradient
        weight = weight - 0.01 * weight + velocity
        yield weight


def adamw(weight, gradients):
    """The weight after each step, from the definition of `AdamW`."""
    m, v = 0.0, 0.0
    for i, gradient in enumerate(gradients):
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        rate = 0.1 * np.sqrt(1.0 - 0.999 ** (i + 1)) / (1.0 - 0.9 ** (i + 1))
        weight = weight - 0.01 * weight - rate * m / (np.sqrt(v) + 1e-7)
        yield weight


STEPS = {"momentumw": momentumw, "adamw": adamw}


def gradients_of(weights):
    """The same gradients for each step, of the shapes of the weights."""
    rng = np.random.default_rng(1)
    return [rng.normal(size=weight.shape) for weight in weights]


def step(model):
    """A step of the model's optimizer, with those gradients."""
    weights = model.trainable_variables
    gradients = [tf.constant(g, tf.float32) for g in gradients_of(weights)]
    model.optimizer.apply_gradients(zip(gradients, weights))


def write_refitted(folder, name):
    """A `.keras` file after two steps and a refit."""
    model = make_model(OPTIMIZERS[name]())
    before = _exact(model.trainable_variables)
    step(model)
    step(model)
    swa_tf.refit_batch_norm(model, [INPUTS[:3], INPUTS[3:]])
    model.save(folder / f"refitted-{name}.keras")
    steps = [
        list(STEPS[name](weight, [gradient] * 3))
        for weight, gradient in zip(before, gradients_of(before))
    ]
    # The statistics are those of the weights as they were stored.
    kernel, bias = _exact(model.get_layer("dense").trainable_variables)
    outputs = INPUTS.astype(np.float64) @ kernel + bias
    return {
        "weights": [each[1] for each in steps],
        "next": [each[2] for each in steps],
        # What a file that leaves out the optimizer's slots goes on with.
        "next_without_slots": [
            next(STEPS[name](each[1], [gradient]))
            for each, gradient in zip(steps, gradients_of(before))
        ],
        "mean": outputs.mean(axis=0),
        "variance": outputs.var(axis=0),
    }


class CutOffError(Exception):
    """Ends a training between two epochs."""


class Interrupts(tf.keras.callbacks.Callback):
    """Records the weights after each epoch; raises before epoch 3."""

    def __init__(self):
        super().__init__()
        self.history = []

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 3:
            raise CutOffError

    def on_epoch_end(self, epoch, logs=None):
        self.history.append(_exact(self.model.trainable_variables))


def fit(folder, *callbacks, epochs=4):
    """Trains with a backup in `folder`; averages from epoch 1 on."""
    model = make_model(tf.keras.optimizers.SGD(0.1, momentum=0.9))
    swa = swa_tf.SWACallback(1, refit_data=[INPUTS], verbose=0)
    backup = tf.keras.callbacks.BackupAndRestore(
        str(folder), delete_checkpoint=False
    )
    model.fit(
        INPUTS,
        TARGETS,
        batch_size=8,
        epochs=epochs,
        verbose=0,
        callbacks=[swa, backup, *callbacks],
    )
    return model, swa


def write_backup(folder):
    """The backup of a training that was cut off after epochs 0, 1 and 2."""
    interrupts = Interrupts()
    with contextlib.suppress(CutOffError):
        fit(folder / "backup", interrupts)
    after = interrupts.history
    return {
        "weights": after[2],
        "swa": [np.mean(values, axis=0) for values in zip(*after[1:])],
    }


def write_training(folder):
    """Writes files of a training in its middle, and the numbers in them."""
    expected = {
        "averages": write_averages(folder),
        **{name: write_refitted(folder, name) for name in OPTIMIZERS},
        "backup": write_backup(folder),
    }
    (folder / "training.json").write_text(
        json.dumps(expected, default=lambda array: array.tolist()),
        encoding="utf-8",
    )


def _exact(weights):
    return [w.numpy().astype(np.float64) for w in weights]


if __name__ == "__main__":
    folder = pathlib.Path(__file__).parent / STACK
    folder.mkdir(exist_ok=True)
    write = {"checkpoints": write_checkpoints, "training": write_training}
    write[sys.argv[1]](folder)
