"""A trained model in files of every form, and what is in them."""

import tensorflow as tf

from swa_tf.support import compat
from tests.checkpoint_files import H5, OBJECT, WEIGHTS


def make_model():
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Input([4]),
            tf.keras.layers.Dense(8, "relu", name="hidden"),
            tf.keras.layers.BatchNormalization(name="bn"),
            tf.keras.layers.Dropout(0.1),
            tf.keras.layers.Dense(3, name="out"),
        ]
    )
    loss = tf.keras.losses.MeanSquaredError()
    model.compile(tf.keras.optimizers.Adam(0.01), loss, jit_compile=False)
    return model


def trackables_of(model):
    return {
        "model": model,
        "optimizer": model.optimizer,
        "step": tf.Variable(0, dtype=tf.int64),
    }


def save_trained(form, model, trackables, path):
    if form == OBJECT:
        tf.train.Checkpoint(**trackables).write(path)
    elif form == WEIGHTS:
        model.save_weights(path)
    elif form == H5 and compat.KERAS_3:
        # With the optimizer it would change how the model is compiled.
        model.save(path, include_optimizer=False)
    else:
        model.save(path)


def contents_of(path):
    reader = tf.train.load_checkpoint(str(path))
    return {
        key: reader.get_tensor(key)
        for key in reader.get_variable_to_shape_map()
    }
