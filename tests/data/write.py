"""Writes the checkpoints in this folder: two a form, and their exact means.

Run on each stack; the tests average those of all stacks on each.

    python tests/data/write.py
"""

import json
import pathlib

import numpy as np
import tensorflow as tf

KERAS_3 = getattr(tf.keras, "__version__", "2").startswith("3.")


def write():
    release = "2.15" if tf.__version__.startswith("2.15.") else "newest"
    keras = "keras3" if KERAS_3 else "keras2"
    folder = pathlib.Path(__file__).parent / f"tensorflow-{release}-{keras}"
    folder.mkdir(exist_ok=True)
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


if __name__ == "__main__":
    write()
