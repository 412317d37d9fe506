"""What belongs to optimizers and counters is not averaged."""

import h5py
import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import compat
from tests.trained import contents_of

v1 = tf.compat.v1
pytestmark = pytest.mark.filterwarnings("ignore:.*refit_batch_norm")
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
OPTIMIZERS = {
    "momentum": (lambda: tf.keras.optimizers.SGD(0.1, momentum=0.9), 1),
    "adam with an average": (
        lambda: tf.keras.optimizers.Adam(0.1, use_ema=True),
        3,
    ),
    "MomentumW": (
        lambda: swa_tf.optimizers.MomentumW(
            weight_decay=1e-4, learning_rate=0.1, momentum=0.9
        ),
        1,
    ),
    "AdamW": (
        lambda: swa_tf.optimizers.AdamW(weight_decay=1e-4, learning_rate=0.1),
        2,
    ),
    "loss scaling": (
        lambda: tf.keras.mixed_precision.LossScaleOptimizer(
            tf.keras.optimizers.Adam(0.1)
        ),
        2,
    ),
}


if not compat.KERAS_3:
    OPTIMIZERS["legacy"] = (
        lambda: tf.keras.optimizers.legacy.Adam(0.1),
        2,
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_of_optimizers_is_the_newest(name, tmp_path):
    make, slots_a_weight = OPTIMIZERS[name]
    model = tf.keras.Sequential([tf.keras.layers.Dense(2)])
    model.build([None, 3])
    optimizer = make()
    checkpoint = tf.train.Checkpoint(optimizer=optimizer, model=model)
    if not compat.KERAS_3:  # there, TensorFlow saves no metrics
        checkpoint.metric = tf.keras.metrics.Mean()
    for step in range(3):
        gradients = [tf.ones_like(w) * step for w in model.trainable_variables]
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        if not compat.KERAS_3:
            checkpoint.metric(float(step))
        checkpoint.write(str(tmp_path / f"ckpt-{step}"))
    newest = contents_of(tmp_path / "ckpt-2")
    for slots in ("keep", "drop"):
        report = swa_tf.average_checkpoints(
            [tmp_path / f"ckpt-{step}" for step in range(3)],
            tmp_path / slots,
            optimizer_slots=slots,
        )
        assert len(report["averaged"]) == 2, report["averaged"]
        written = contents_of(tmp_path / slots)
        for key in written.keys() - {"_CHECKPOINTABLE_OBJECT_GRAPH"}:
            averaged = key[: -len(_SUFFIX)] in report["averaged"]
            same = np.array_equal(newest[key], written[key])
            assert same != averaged, key
    dropped = newest.keys() - written.keys()
    assert len(dropped) == 2 * slots_a_weight
    checkpoint.read(str(tmp_path / "drop")).expect_partial()


class _Gan(tf.keras.Model):
    """Two parts, each with an optimizer that is the model's attribute."""

    def __init__(self, make):
        super().__init__()
        self.d, self.g = tf.keras.layers.Dense(3), tf.keras.layers.Dense(2)
        self.d_opt, self.g_opt = make(), make()

    def call(self, inputs):
        return self.g(self.d(inputs))

    def step(self):
        for part, optimizer in ((self.d, self.d_opt), (self.g, self.g_opt)):
            weights = part.trainable_variables
            gradients = [tf.ones_like(w) for w in weights]
            optimizer.apply_gradients(zip(gradients, weights))


_OWN = {
    "sgd": lambda: tf.keras.optimizers.SGD(),
    "adam": lambda: tf.keras.optimizers.Adam(0.1),
    "adam of a schedule": lambda: tf.keras.optimizers.Adam(
        tf.keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    ),
    "adafactor": lambda: tf.keras.optimizers.Adafactor(),
    "loss scaling": OPTIMIZERS["loss scaling"][0],
}


@pytest.mark.filterwarnings("ignore:Skipping variable loading")
@pytest.mark.parametrize("slots", ["keep", "drop"])
@pytest.mark.parametrize("name", _OWN)
def test_optimizers_that_a_model_holds(name, slots, tmp_path):
    """They are told by their layout, and a warning says so."""
    gan = _Gan(_OWN[name])
    gan(np.zeros([1, 4], np.float32))
    history = []
    for i in range(3):
        gan.step()
        history.append([w.numpy() for w in (*gan.d.weights, *gan.g.weights)])
        gan.save_weights(str(tmp_path / f"m-{i}.weights.h5"))
    output = tmp_path / "average.weights.h5"
    with pytest.warns(UserWarning, match="'d_opt/.* and .* more"):
        report = swa_tf.average_checkpoints(
            tmp_path, output, optimizer_slots=slots
        )
    assert len(report["averaged"]) == 4
    kept, dropped = report["from_newest"], report["dropped"]
    optimizers = kept if slots == "keep" else dropped
    assert report["guessed"] == optimizers
    assert all("_opt/" in name for name in optimizers)
    newest, written = (
        _datasets(path) for path in (tmp_path / "m-2.weights.h5", output)
    )
    assert written.keys() == newest.keys() - set(dropped)
    for key in kept:
        np.testing.assert_array_equal(written[key], newest[key])
    if (name, slots) == ("loss scaling", "drop") and not compat.KERAS_3:
        return  # Keras 2 cannot load it: docs/checkpoints.md says so
    gan.load_weights(str(output))
    for weight, values in zip((*gan.d.weights, *gan.g.weights), zip(*history)):
        np.testing.assert_allclose(weight, np.mean(values, 0), rtol=1e-6)


def _datasets(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda key, item: (
                found.update({key: item[()]})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    return found


@pytest.mark.parametrize(
    "arrays",
    [
        [np.int64(7), np.float32([1.0] * 5)],  # as no weight is
        [np.int64(7), np.int32(3)],  # nothing to average
        [np.int64([7]), np.float32([[1.0]])],  # no count of steps
    ],
)
def test_layers_that_count_are_no_optimizers(arrays, tmp_path, recwarn):
    with h5py.File(tmp_path / "m-1.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = np.float32([[1.0]])
        for i, array in enumerate(arrays):
            file[f"layers/counting/vars/{i}"] = array
    report = swa_tf.average_checkpoints(
        tmp_path, tmp_path / "average.weights.h5", optimizer_slots="drop"
    )
    floats = sum(array.dtype == np.float32 for array in arrays)
    assert len(report["averaged"]) == 1 + floats
    assert report["guessed"] == report["dropped"] == []
    assert not recwarn.list


class _Named(tf.keras.layers.Layer):
    """Weights that are called like counters, and are none."""

    def build(self, shape):
        for name, size in (("step", [3]), ("lr", []), ("beta1_power", [])):
            weight = self.add_weight(name=name, shape=size, initializer="zeros")
            setattr(self, name, weight)


def test_weights_that_are_called_like_counters(tmp_path):
    """`apply` averages them; floats beside a model are told by their names."""
    layer = _Named()
    layer.build([None, 1])
    module = tf.Module()
    module.learning_rate = tf.Variable(0.0)
    checkpoint = tf.train.Checkpoint(
        layer=layer, module=module, epoch=tf.Variable(0.0)
    )
    checkpoint.steps = tf.Variable([0.0, 0.0])
    for i in range(2):
        layer.set_weights([np.full(w.shape, 2.0 * i) for w in layer.weights])
        module.learning_rate.assign(2.0 * i)
        checkpoint.epoch.assign(2.0 * i)
        checkpoint.steps.assign([2.0 * i, 2.0 * i])
        checkpoint.write(str(tmp_path / f"ckpt-{i}"))
    with pytest.warns(UserWarning, match="counter: 'epoch'.$"):
        report = swa_tf.average_checkpoints(tmp_path, tmp_path / "average")
    assert report["guessed"] == ["epoch"]
    assert len(report["averaged"]) == 5
    checkpoint.read(str(tmp_path / "average"))
    for weight in (*layer.weights, module.learning_rate, checkpoint.steps):
        np.testing.assert_array_equal(weight, np.ones(weight.shape))
    assert float(checkpoint.epoch) == 2.0


@pytest.mark.parametrize("adam", [True, False])
def test_name_based_counters_are_told_by_their_names(adam, tmp_path, recwarn):
    """The powers of Adam are known where its slots are."""
    values = {"beta1_power": np.float32(0.9), "w": np.float32([1.0])}
    if adam:
        values["w/Adam"] = np.float32([1.0])
    for i, named in enumerate({**values, "lr": np.float32(i)} for i in (1, 2)):
        path = str(tmp_path / f"ckpt-{i}")
        tf.raw_ops.SaveV2(
            prefix=path,
            tensor_names=list(named),
            shape_and_slices=[""] * len(named),
            tensors=list(named.values()),
        )
    report = swa_tf.average_checkpoints(tmp_path, tmp_path / "average")
    assert report["averaged"] == ["w"]
    assert report["guessed"] == (["lr"] if adam else ["beta1_power", "lr"])
    assert contents_of(tmp_path / "average")["lr"] == 2
    assert len(recwarn) == 1


def test_name_based_slots_are_told_by_their_names(tmp_path):
    with tf.Graph().as_default(), v1.Session() as session:
        kernel = v1.get_variable("dense/kernel", [2, 2])
        alike = v1.get_variable("kernel", [2, 2])  # not a slot of it
        step = v1.train.get_or_create_global_step()
        loss = tf.reduce_sum(kernel * kernel + alike * alike)
        train = v1.train.AdamOptimizer(0.1).minimize(loss, step)
        session.run(v1.global_variables_initializer())
        saver = v1.train.Saver()
        history = []
        for _ in range(3):
            session.run(train)
            history.append(session.run([kernel, alike]))
            saver.save(session, str(tmp_path / "ckpt"), step)
        output = str(tmp_path / "average")
        report = swa_tf.average_checkpoints(tmp_path, output)
        saver.restore(session, output)
        averaged = session.run([kernel, alike])
        assert session.run(step) == 3
    assert report["averaged"] == ["dense/kernel", "kernel"]
    for value, values in zip(averaged, zip(*history)):
        exact = np.mean(np.stack(values).astype(np.float64), 0)
        np.testing.assert_array_equal(value, exact.astype(np.float32))
    report = swa_tf.average_checkpoints(
        [tmp_path / "ckpt-1", tmp_path / "ckpt-3"],
        tmp_path / "dropped",
        optimizer_slots="drop",
    )
    names = ["dense/kernel/Adam", "dense/kernel/Adam_1", "kernel/Adam"]
    assert report["dropped"] == [*names, "kernel/Adam_1"]
    assert contents_of(tmp_path / "dropped").keys() == {
        *report["averaged"],
        *report["from_newest"],
    }
