"""Files that an earlier version of this package wrote load, and go on.

`tests/data/write.py` wrote them on each written_on, with the numbers expected.
"""

import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import compat
from tests.data import write

DATA = pathlib.Path(write.__file__).parent
STACKS = sorted(p.name for p in DATA.glob("tensorflow-*"))
# Keras 2 and 3 cannot read each other's checkpoints of models.
READABLE = [s for s in STACKS if s.endswith("keras3") == compat.KERAS_3]
# About ten roundings in float32 of numbers no larger than 4.
TOLERANCE = 40 * 2.0**-24
# In Adam 1 - 0.999^t in float32 is off by 6e-5, its root by half of that, and
# so is each of three steps, of 0.1.
ADAM_TOLERANCE = TOLERANCE + 3 * 0.1 * 3e-5


def _expected(written_on):
    path = DATA / written_on / "training.json"
    return json.loads(path.read_text(encoding="utf-8"))


def _assert_close(found, expected, tolerance=TOLERANCE):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(np.asarray(a), b, rtol=0, atol=tolerance)


def _averages(average, weights):
    return [average.average(weight).numpy() for weight in weights]


@pytest.mark.parametrize("written_on", STACKS)
def test_averages(written_on):
    """Averages written by any stack are read on any stack."""
    expected = _expected(written_on)["averages"]
    training = write.make_averages()
    weights = training.model.trainable_variables
    averages = tf.train.Checkpoint(swa=training.swa, ema=training.ema)
    status = averages.read(str(DATA / written_on / "averages"))
    for average in (training.swa, training.ema):
        average.build(weights)
    status.assert_existing_objects_matched()
    assert int(training.swa.n_models) == 3
    assert int(training.ema.n_models) == 6
    _assert_close(_averages(training.swa, weights), expected["swa"])
    _assert_close(_averages(training.ema, weights), expected["ema"])
    for weight in weights:
        weight.assign(tf.fill(weight.shape, 2.0))
    for _ in range(2):  # of these calls, 6 and 7, only 7 is due
        training.swa.apply(weights)
    training.ema.apply(weights)
    for average, before, rate in (
        (training.swa, expected["swa"], 1 / 4),
        (training.ema, expected["ema"], 1 - 0.9),
    ):
        _assert_close(
            _averages(average, weights),
            [np.add(b, rate * np.subtract(2.0, b)) for b in before],
        )


@pytest.mark.parametrize("written_on", STACKS)
def test_merged_averages(written_on):
    """The files do not say of which kind their averages are."""
    expected = _expected(written_on)["averages"]["swa"]
    path = str(DATA / written_on / "averages")
    state = tf.train.load_checkpoint(path).get_tensor(
        "swa/_state/.ATTRIBUTES/py_state"
    )
    weights = [
        tf.Variable(np.full(np.shape(value), 2.0, np.float32), name=name)
        for value, (name, _) in zip(expected, json.loads(state)["averaged"])
    ]
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply(weights)
    swa_tf.merge_averages(swa, [path])
    assert int(swa.n_models) == 1 + 3
    merged = [np.add(2.0, 3 / 4 * np.subtract(b, 2.0)) for b in expected]
    _assert_close(_averages(swa, weights), merged)


@pytest.mark.parametrize("written_on", READABLE)
def test_checkpoint_of_a_training(written_on):
    expected = _expected(written_on)["averages"]
    training = write.make_averages()
    weights = training.model.trainable_variables
    training.optimizer.build(weights)
    status = training.read(str(DATA / written_on / "averages"))
    for average in (training.swa, training.ema):
        average.build(weights)
    status.assert_existing_objects_matched()
    _assert_close(weights, expected["weights"])
    zeros = [tf.zeros(weight.shape) for weight in weights]
    training.optimizer.apply_gradients(zip(zeros, weights))
    _assert_close(weights, expected["next"])
    _assert_close(_averages(training.swa, weights), expected["swa"])


@pytest.mark.parametrize("name", write.OPTIMIZERS)
def test_model_with_an_optimizer_and_refit_statistics(name):
    """A `.keras` file is read on the stack that wrote it: no other can."""
    expected = _expected(write.STACK)[name]
    path = DATA / write.STACK / f"refitted-{name}.keras"
    tolerance = ADAM_TOLERANCE if name == "adamw" else TOLERANCE
    model = tf.keras.models.load_model(path)
    weights = model.trainable_variables
    _assert_close(weights, expected["weights"], tolerance)
    layer = model.get_layer("bn")
    assert isinstance(layer, swa_tf.MovingFreeBatchNormalization)
    assert int(layer.n_updates) == 2
    _assert_close(
        [layer.mean, layer.variance],
        [expected["mean"], expected["variance"]],
    )
    average = swa_tf.StochasticWeightAveraging()
    average.apply(weights)
    write.step(model)
    # Keras 2 leaves the velocity of the optimizer of Addons out of the file.
    lost = name == "momentumw" and compat.tensorflow_addons() is not None
    after = expected["next_without_slots" if lost else "next"]
    _assert_close(weights, after, tolerance)
    average.apply(weights)
    _assert_close(
        _averages(average, weights),
        [np.add(a, b) / 2 for a, b in zip(expected["weights"], after)],
        tolerance,
    )


@pytest.mark.parametrize("written_on", READABLE)
def test_backup_in_the_middle_of_fit(written_on, tmp_path):
    expected = _expected(written_on)["backup"]
    folder = tmp_path / "backup"
    shutil.copytree(DATA / written_on / "backup", folder)
    before, after = [], []

    class Records(tf.keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            weights = self.model.trainable_variables
            before.append([w.numpy() for w in weights])

        def on_epoch_end(self, epoch, logs=None):
            weights = self.model.trainable_variables
            after.append([w.numpy().astype(np.float64) for w in weights])

    model, swa = write.fit(folder, Records())
    (first,), (last,) = before, after  # one epoch is left
    _assert_close(first, expected["weights"])
    assert int(swa.averages.n_models) == 3
    _assert_close(
        model.trainable_variables,
        [np.add(2 * np.array(b), w) / 3 for b, w in zip(expected["swa"], last)],
    )
