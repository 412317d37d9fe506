"""Small checkpoints of every form, as TensorFlow and Keras write them."""

import os
import pathlib
import signal

import numpy as np
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

from swa_tf import average_checkpoints_main
from swa_tf.support import compat

OBJECT, NAME, WEIGHTS, KERAS, H5 = (
    "object-based",
    "name-based",
    ".weights.h5",
    ".keras",
    ".h5",
)
FORMS = (OBJECT, NAME, WEIGHTS, KERAS, H5)


@tf.keras.utils.register_keras_serializable("swa_tf_tests")
class Values(tf.keras.layers.Layer):
    """A layer that holds weights of any shapes and types, and does nothing.

    Args:
        specs: (name, shape, dtype) of each weight.
    """

    def __init__(self, specs, name="values", **kwargs):
        super().__init__(name=name, **kwargs)
        self.specs = [(name, tuple(shape), d) for name, shape, d in specs]
        for name, shape, dtype in self.specs:
            self.add_weight(
                shape=shape,
                dtype=dtype,
                initializer="zeros",
                trainable="float" in dtype,
                name=name,
            )

    def call(self, inputs):
        return inputs

    def get_config(self):
        return {**super().get_config(), "specs": self.specs}


def path_of(form, folder, name):
    """Returns the path of a checkpoint of this form and name."""
    return os.path.join(folder, name + suffix(form))


def suffix(form):
    """Returns the suffix of the paths of a form."""
    return form if form in (WEIGHTS, KERAS, H5) else ""


def files(form, path):
    """The files of a checkpoint of one shard."""
    if suffix(form):
        return [path]
    return [f"{path}.data-00000-of-00001", f"{path}.index"]


def write(form, path, values):
    """Writes a checkpoint of named arrays.

    Args:
        form: One of `FORMS`.
        path: Ends in `suffix(form)`.
        values: `dict[str, np.ndarray]`, names that are identifiers. Strings
            are for TensorFlow's checkpoints only. Keras numbers the weights,
            in their order here.
    """
    if form == OBJECT:
        variables = {name: tf.Variable(v) for name, v in values.items()}
        tf.train.Checkpoint(**variables).write(path)
    elif form == NAME:
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            for name, value in values.items():
                tf.compat.v1.Variable(value, name=name)
            session.run(tf.compat.v1.global_variables_initializer())
            _save_session(session, path)
    else:
        model = _model(values)
        model.layers[-1].set_weights(_weights(values))
        _save_model(model, form, path)


def read(form, path, like):
    """The named arrays of a checkpoint, as TensorFlow and Keras load them.

    Args:
        form: One of `FORMS`.
        path: What `write` or `average_checkpoints` has written.
        like: What `write` was given; only names, shapes and types matter.
    """
    if form == OBJECT:
        variables = {
            name: tf.Variable(tf.zeros_like(value))
            for name, value in like.items()
        }
        status = tf.train.Checkpoint(**variables).read(path)
        status.assert_existing_objects_matched()
        return {name: v.numpy() for name, v in variables.items()}
    if form == NAME:
        reader = tf.train.load_checkpoint(path)
        return {name: reader.get_tensor(name) for name in like}
    if form == WEIGHTS:
        model = _model(like)
        model.load_weights(path)
    else:
        model = tf.keras.models.load_model(path, compile=False)
    specs = model.layers[-1].specs
    # Keras lists what is trained first.
    names = [n for n, _, d in specs if "float" in d]
    names += [n for n, _, d in specs if "float" not in d]
    return dict(zip(names, model.layers[-1].get_weights()))


def write_trained(form, path, seed):
    """Writes a small model with batch normalization and its Adam, in use.

    The weights, the statistics, the slots and the counters follow from `seed`.
    """
    rng = np.random.default_rng(seed)
    if form == NAME:
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            kernel = tf.compat.v1.get_variable("kernel", (2, 3))
            bias = tf.compat.v1.get_variable("bias", (3,))
            step = tf.compat.v1.train.get_or_create_global_step()
            tf.compat.v1.train.AdamOptimizer().minimize(
                tf.reduce_sum(tf.ones((1, 2)) @ kernel + bias), step
            )
            for variable in tf.compat.v1.global_variables():
                shape = variable.shape.as_list()
                variable.initializer.run(
                    {variable.initial_value: rng.integers(1, 99, shape)}
                )
            _save_session(session, path)
        return
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Input((2,)),
            tf.keras.layers.Dense(3, name="dense"),
            tf.keras.layers.BatchNormalization(name="batch_norm"),
        ],
        name="model",
    )
    model.compile("adam", "mse")
    weights = model.trainable_variables
    model.optimizer.apply_gradients(
        [(tf.constant(rng.normal(size=w.shape), w.dtype), w) for w in weights]
    )
    model.set_weights([rng.uniform(size=w.shape) for w in model.get_weights()])
    if form == OBJECT:
        checkpoint = tf.train.Checkpoint(
            model=model, optimizer=model.optimizer, note=tf.Variable("a note")
        )
        checkpoint.write(path)
    else:
        _save_model(model, form, path)


def optimizer_variables(model):
    """All that a model's optimizer keeps."""
    return compat.optimizer_variables(model.optimizer)


def contents(folder):
    """All that is in a folder: what it is, its bytes and when it was made."""
    found = {}
    for path in sorted(pathlib.Path(folder).rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        if path.is_dir():
            found[path] = "a folder"
        else:
            found[path] = (status.st_mode, status.st_mtime_ns, content)
    return found


def command_line(*arguments):
    """Runs it in this process, and returns the exit status."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with flagsaver.flagsaver():
            argv = flags.FLAGS(["swa-average-checkpoints", *arguments])
            return average_checkpoints_main.main(argv)
    finally:
        signal.signal(signal.SIGTERM, handler)


def _model(values):
    specs = [(n, np.shape(v), _dtype(v)) for n, v in values.items()]
    return tf.keras.Sequential(
        [tf.keras.layers.Input((1,)), Values(specs)], name="model"
    )


def _weights(values):
    """Returns arrays in the order of `get_weights`, trained ones first."""
    arrays = [np.asarray(value) for value in values.values()]
    return sorted(arrays, key=lambda array: "float" not in array.dtype.name)


def _dtype(value):
    return np.asarray(value).dtype.name


def _save_model(model, form, path):
    if form == WEIGHTS:
        model.save_weights(path)
    else:
        model.save(path)


def _save_session(session, path):
    tf.compat.v1.train.Saver().save(
        session, path, write_meta_graph=False, write_state=False
    )
