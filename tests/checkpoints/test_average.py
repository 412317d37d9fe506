"""The average of checkpoints is that of the models they were written from."""

import io
import json
import os
import pathlib
import warnings
import zipfile
from unittest import mock

import h5py
import hypothesis
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

import swa_tf
from swa_tf.checkpoints import merge, tensorflow_format
from swa_tf.support import stack
from tests import checkpoint_files, programs
from tests.checkpoint_files import FORMS, H5, KERAS, NAME, OBJECT, WEIGHTS
from tests.fitting import exhaustive

v1 = tf.compat.v1

pytestmark = pytest.mark.filterwarnings("ignore:.*refit_batch_norm")


def _model():
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
    model.compile(tf.keras.optimizers.Adam(0.01), loss)
    return model


def _trackables(model):
    return {
        "model": model,
        "optimizer": model.optimizer,
        "step": tf.Variable(0, dtype=tf.int64),
    }


def _save(form, model, trackables, path):
    if form == OBJECT:
        tf.train.Checkpoint(**trackables).write(path)
    elif form == WEIGHTS:
        model.save_weights(path)
    elif form == H5 and stack.KERAS_3:
        # With the optimizer it would change how the model is compiled.
        model.save(path, include_optimizer=False)
    else:
        model.save(path)


def _load(form, path):
    """A model from a file, with what else a checkpoint has."""
    model = _model()
    trackables = _trackables(model)
    if form == OBJECT:
        model.optimizer.build(model.trainable_variables)
        status = tf.train.Checkpoint(**trackables).read(path)
        status.assert_existing_objects_matched()
    elif form == WEIGHTS:
        model.load_weights(path)
    else:
        model = tf.keras.models.load_model(path, compile=form == KERAS)
    return model, trackables


def _ulps(value, exact, of):
    """The largest distance, in units in the last place of float32 `of`."""
    distance = np.abs(np.asarray(value, np.float64) - exact)
    return np.max(distance / np.spacing(np.float32(of)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training, with a checkpoint in each form, and `apply`, each epoch."""
    folder = tmp_path_factory.mktemp("run")
    tf.keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=[32, 4]).astype(np.float32)
    targets = rng.normal(size=[32, 3]).astype(np.float32)
    model = _model()
    trackables = _trackables(model)
    swa = swa_tf.StochasticWeightAveraging()
    paths = {form: [] for form in (OBJECT, WEIGHTS, KERAS, H5)}
    history = []
    for epoch in range(4):
        model.fit(inputs, targets, batch_size=8, verbose=0)
        trackables["step"].assign_add(4)
        swa.apply(model.trainable_variables)
        history.append([weight.numpy() for weight in model.weights])
        for form in paths:
            name = f"epoch-{epoch}"
            path = checkpoint_files.path_of(form, str(folder), name)
            _save(form, model, trackables, path)
            paths[form].append(path)
    return {
        "paths": paths,
        "history": history,
        "averages": [swa.average(w).numpy() for w in model.trainable_variables],
        "slots": [
            variable.numpy()
            for variable in checkpoint_files.optimizer_variables(model)
        ],
        "data": (inputs, targets),
    }


@pytest.mark.parametrize(
    ("form", "slots"),
    [
        (OBJECT, "keep"),
        (OBJECT, "drop"),
        (WEIGHTS, "keep"),
        (KERAS, "keep"),
        (KERAS, "drop"),
        exhaustive(WEIGHTS, "drop"),
        (H5, "keep"),
        exhaustive(H5, "drop"),
    ],
)
def test_equals_apply_at_the_same_moments(form, slots, run, tmp_path):
    output = checkpoint_files.path_of(form, str(tmp_path), "average")
    report = swa_tf.average_checkpoints(
        run["paths"][form], output, optimizer_slots=slots
    )
    if form == OBJECT and slots == "drop":
        model = _model()
        checkpoint = tf.train.Checkpoint(**_trackables(model))
        checkpoint.read(output).assert_consumed()
    else:
        model, trackables = _load(form, output)
    weights = [np.stack(w).astype(np.float64) for w in zip(*run["history"])]
    for variable, values in zip(model.weights, weights):
        assert _ulps(variable, values.mean(0), values.mean(0)) <= 0.5001
    # `apply` rounds each of its steps, here three.
    for variable, average, values in zip(
        model.trainable_variables,
        run["averages"],
        [w for w, v in zip(weights, model.weights) if _is_trained(model, v)],
    ):
        assert _ulps(variable, average, np.abs(values).max(0)) <= 1.5
    assert len(report["averaged"]) == len(model.weights)
    assert len(report["batch_norm_statistics"]) == 2
    if slots == "keep" or form != H5:
        assert bool(report["dropped"]) == (slots == "drop")
    if form == OBJECT and slots == "keep":
        assert int(trackables["step"]) == 16
    if slots == "keep" and form in (OBJECT, KERAS):
        found = checkpoint_files.optimizer_variables(model)
        for variable, value in zip(found, run["slots"]):
            np.testing.assert_array_equal(variable, value)
    if form != H5:
        model.fit(*run["data"], verbose=0)  # it trains on


def _is_trained(model, variable):
    return any(variable is other for other in model.trainable_variables)


def test_what_is_averaged_does_not_follow_from_the_key(run):
    """Keras 3 stores the kernels under the path of the optimizer."""
    keys = tf.train.load_checkpoint(
        run["paths"][OBJECT][0]
    ).get_variable_to_shape_map()
    under_optimizer = {k for k in keys if k.startswith("optimizer/_trainable")}
    assert bool(under_optimizer) == stack.KERAS_3
    report = swa_tf.average_checkpoints(
        run["paths"][OBJECT], "unused", dry_run=True
    )
    assert len(report["averaged"]) == 8
    assert {f"{name}{_SUFFIX}" for name in report["averaged"]} >= (
        under_optimizer
    )


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
if not stack.KERAS_3:
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
    if not stack.KERAS_3:  # there, TensorFlow saves no metrics
        checkpoint.metric = tf.keras.metrics.Mean()
    for step in range(3):
        gradients = [tf.ones_like(w) * step for w in model.trainable_variables]
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        if not stack.KERAS_3:
            checkpoint.metric(float(step))
        checkpoint.write(str(tmp_path / f"ckpt-{step}"))
    newest = _contents(tmp_path / "ckpt-2")
    for slots in ("keep", "drop"):
        report = swa_tf.average_checkpoints(
            [tmp_path / f"ckpt-{step}" for step in range(3)],
            tmp_path / slots,
            optimizer_slots=slots,
        )
        assert len(report["averaged"]) == 2, report["averaged"]
        written = _contents(tmp_path / slots)
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
    if (name, slots) == ("loss scaling", "drop") and not stack.KERAS_3:
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
    assert _contents(tmp_path / "average")["lr"] == 2
    assert len(recwarn) == 1


def _contents(path):
    reader = tf.train.load_checkpoint(str(path))
    return {
        key: reader.get_tensor(key)
        for key in reader.get_variable_to_shape_map()
    }


def test_an_average_in_a_checkpoint_is_the_newest(tmp_path):
    variable = tf.Variable([1.0, 2.0])
    swa = swa_tf.StochasticWeightAveraging()
    checkpoint = tf.train.Checkpoint(w=variable, swa=swa)
    for i in range(3):
        variable.assign([float(i), float(i * i)])
        swa.apply([variable])
        checkpoint.write(str(tmp_path / f"ckpt-{i}"))
    swa_tf.average_checkpoints(tmp_path, tmp_path / "average")
    variable.assign([0.0, 0.0])
    swa.reset()
    checkpoint.read(str(tmp_path / "average")).assert_consumed()
    np.testing.assert_allclose(variable, [1.0, 5 / 3], rtol=1e-7)
    np.testing.assert_allclose(swa.average(variable), [1.0, 5 / 3], rtol=1e-6)
    assert int(swa.n_models) == 3


@pytest.mark.parametrize("form", FORMS)
def test_every_form_and_type(form, tmp_path):
    """Floats are averaged in float64; all else is that of the newest."""
    rng = np.random.default_rng(0)
    models = [
        {
            "half": rng.normal(size=[3, 2]).astype(np.float16),
            "single": rng.normal(size=[70, 3]).astype(np.float32),
            "double": rng.normal(size=[5]),
            "scalar": np.float32(rng.normal()),
            "whole": np.arange(4, dtype=np.int32) + i,
            "long": np.int64(10 + i),
        }
        for i in range(3)
    ]
    paths = []
    for i, values in enumerate(models):
        paths.append(checkpoint_files.path_of(form, str(tmp_path), f"m-{i}"))
        checkpoint_files.write(form, paths[-1], values)
    output = checkpoint_files.path_of(form, str(tmp_path), "average")
    swa_tf.average_checkpoints(paths, output)
    result = checkpoint_files.read(form, output, models[0])
    for name, value in result.items():
        stacked = np.stack([model[name] for model in models])
        assert value.dtype == stacked.dtype, name
        if stacked.dtype.kind == "f":
            exact = stacked.astype(np.float64).mean(0)
            rounding = np.spacing(np.abs(exact).astype(stacked.dtype))
            assert np.all(np.abs(value - exact) <= rounding), name
        else:
            np.testing.assert_array_equal(value, stacked[-1])


@pytest.mark.filterwarnings("ignore:.*looks like.*'epoch'")
def test_types_of_tensorflow(tmp_path):
    """Dtypes of TensorFlow's own checkpoints alone, worked out by hand."""
    variables = {
        "brain": tf.Variable([1.0, 2.0], dtype=tf.bfloat16),
        "complex": tf.Variable([1j, 2.0], dtype=tf.complex64),
        "text": tf.Variable(["a", "bc"]),
        "flag": tf.Variable(False),
        "none": tf.Variable(tf.zeros([0, 3])),
        "mask": tf.Variable([np.inf, -np.inf, np.nan, np.inf]),
        "epoch": tf.Variable(0.0),
    }
    checkpoint = tf.train.Checkpoint(**variables)
    for i in range(2):
        variables["brain"].assign([i, 2 * i + 1])
        variables["complex"].assign([i * 2j, i])
        variables["text"].assign([f"text {i}" * 50, ""])
        variables["flag"].assign(i == 1)
        variables["mask"].assign([np.inf, -np.inf, 1.0, i])
        variables["epoch"].assign(i)
        checkpoint.write(str(tmp_path / f"ckpt-{i}"))
    swa_tf.average_checkpoints(tmp_path, tmp_path / "average")
    expected = {
        "brain": np.array([0.5, 2.0], ml_dtypes.bfloat16),
        "complex": np.array([1j, 0.5], np.complex64),
        "text": np.array([b"text 1" * 50, b""], object),
        "flag": np.array(True),
        "none": np.zeros([0, 3], np.float32),
        "mask": np.array([np.inf, -np.inf, 1.0, 0.5], np.float32),
        "epoch": np.float32(1.0),
    }
    for value in variables.values():
        value.assign(tf.zeros_like(value))
    checkpoint.read(str(tmp_path / "average")).assert_consumed()
    for name, value in expected.items():
        np.testing.assert_array_equal(variables[name].numpy(), value)


def _write_h5(path, arrays, **kwargs):
    """A file of weights as Keras lays it out, of these arrays' own types."""
    held = io.BytesIO() if path.suffix == ".keras" else path
    with h5py.File(held, "w") as file:
        for i, array in enumerate(arrays):
            name = f"layers/d/vars/{i}"
            dataset = file.create_dataset(name, data=array, **kwargs)
            if array.dtype == ml_dtypes.bfloat16:
                dataset.attrs["dtype"] = "bfloat16"
    if path.suffix == ".keras":
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.writestr("model.weights.h5", held.getvalue())


@pytest.mark.parametrize("orders", ["<<", ">>", "<>", "><"])
@pytest.mark.parametrize(
    ("suffix", "layout"),
    [
        (".weights.h5", {}),
        (".keras", {}),
        (".h5", {"chunks": (2,), "compression": "gzip"}),
    ],
)
def test_either_byte_order(suffix, layout, orders, tmp_path):
    """The mean is right, in the newest input's own type, bit for bit."""
    kinds = ("f2", "f4", "f8", "c8", "c16", "i4")
    paths = []
    for i, order in enumerate(orders):
        values = np.array([1.0, 2.5, -6.0]) + 2 * i
        arrays = [values.astype(f"{order}{kind}") for kind in kinds]
        arrays.append(values.astype(ml_dtypes.bfloat16))  # in one order only
        paths.append(tmp_path / f"m-{i}{suffix}")
        _write_h5(paths[-1], arrays, **layout)
    output = tmp_path / f"average{suffix}"
    swa_tf.average_checkpoints(paths, output)
    if suffix == ".keras":
        with zipfile.ZipFile(output) as zipped:
            output = io.BytesIO(zipped.read("model.weights.h5"))
    with h5py.File(output) as file:
        for i, kind in enumerate(kinds):
            written = file[f"layers/d/vars/{i}"]
            # Whole numbers are those of the newest, rounded to zero.
            mean = [3, 4, -4] if kind == "i4" else [2.0, 3.5, -5.0]
            assert written.dtype == np.dtype(f"{orders[-1]}{kind}")
            np.testing.assert_array_equal(written[()], mean)
        brain = file[f"layers/d/vars/{len(kinds)}"][()]
        np.testing.assert_array_equal(
            brain.view(ml_dtypes.bfloat16), [2.0, 3.5, -5.0]
        )


def test_floats_of_a_type_that_only_hdf5_has(tmp_path):
    """bfloat16 as a number of HDF5's, which numpy reads as float32."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    space = h5py.h5s.create_simple((2,))
    for i, values in enumerate([[1.0, 2.5], [3.0, 4.5]]):
        with h5py.File(tmp_path / f"m-{i}.h5", "w") as file:
            dataset = h5py.h5d.create(file.id, b"w", kind, space)
            h5py.Dataset(dataset)[...] = np.float32(values)
            assert dataset.get_storage_size() == 4
    swa_tf.average_checkpoints(tmp_path, tmp_path / "average.h5")
    with h5py.File(tmp_path / "average.h5") as file:
        assert file["w"].id.get_type() == kind
        np.testing.assert_array_equal(file["w"][()], [2.0, 3.5])


def _save_slices(path, values):
    """`values` in two slices, as a partitioned variable is saved."""
    tf.raw_ops.SaveV2(
        prefix=path,
        tensor_names=["w", "w", "b"],
        shape_and_slices=["6 2 0,4:-", "6 2 4,2:-", ""],
        tensors=[values[:4], values[4:], values[0]],
    )


def _save_shards(path, values):
    parts = []
    for name, value in {"w": values, "b": values[0]}.items():
        parts.append(f"{path}-part-{name}")
        tf.raw_ops.SaveV2(
            prefix=parts[-1],
            tensor_names=[name],
            shape_and_slices=[""],
            tensors=[value],
        )
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=parts, destination_prefix=path
    )


def _save_version_1(path, values):
    tf.raw_ops.Save(
        filename=path,
        tensor_names=["w", "b"],
        data=[tf.constant(values), tf.constant(values[0])],
    )


@pytest.mark.parametrize("save", [_save_slices, _save_shards, _save_version_1])
def test_other_ways_to_lie_in_files(save, tmp_path):
    rng = np.random.default_rng(0)
    models = rng.normal(size=[3, 6, 2]).astype(np.float32)
    paths = [str(tmp_path / f"ckpt-{i}") for i in range(3)]
    for path, values in zip(paths, models):
        save(path, values)
    output = tmp_path / "average"
    swa_tf.average_checkpoints(paths, output)
    exact = models.astype(np.float64).mean(0).astype(np.float32)
    written = _contents(output)
    np.testing.assert_array_equal(written["w"], exact)
    np.testing.assert_array_equal(written["b"], exact[0])


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
    assert _contents(tmp_path / "dropped").keys() == {
        *report["averaged"],
        *report["from_newest"],
    }


WRITTEN = pathlib.Path(__file__).parents[1] / "data"


def _floats(form, path):
    """All tensors of floating point in a file, by no code of `swa_tf`."""
    if form == OBJECT:
        found = _contents(path).values()
    else:
        if form == KERAS:
            with zipfile.ZipFile(path) as file:
                path = io.BytesIO(file.read("model.weights.h5"))
        found = []
        with h5py.File(path) as file:
            file.visititems(
                lambda _, item: (
                    found.append(item[()])
                    if isinstance(item, h5py.Dataset)
                    else None
                )
            )
    return [v for v in found if getattr(v, "dtype", None) == np.float32]


@pytest.mark.parametrize("form", [OBJECT, WEIGHTS, KERAS])
@pytest.mark.parametrize(
    "written_on", [p.name for p in WRITTEN.glob("tensor*")]
)
def test_checkpoints_of_each_stack_average_on_each(written_on, form, tmp_path):
    folder = WRITTEN / written_on
    names = ["ckpt-1", "ckpt-2"]
    if form != OBJECT:
        names = [f"model-{i}{checkpoint_files.suffix(form)}" for i in (1, 2)]
    output = checkpoint_files.path_of(form, str(tmp_path), "average")
    swa_tf.average_checkpoints([folder / name for name in names], output)
    means = [
        np.float32(mean)
        for mean in json.loads((folder / "means.json").read_text("utf-8"))
    ]
    written = _floats(form, output)
    for mean in means:
        assert any(np.array_equal(mean, value) for value in written)
    if form == WEIGHTS:
        model = tf.keras.Sequential(
            [
                tf.keras.layers.Input([3]),
                tf.keras.layers.Dense(4),
                tf.keras.layers.BatchNormalization(),
            ]
        )
        model.load_weights(output)
        for weight, mean in zip(model.get_weights(), means):
            np.testing.assert_array_equal(weight, mean)


@hypothesis.given(
    st.integers(1, 4).flatmap(
        lambda n: st_numpy.arrays(
            np.float32,
            st.tuples(st.just(n), st.integers(0, 40)),
            elements=st.floats(-1e6, 1e6, width=32),
        )
    ),
    st.sampled_from([1, 3, 16, 64]),
)
def test_blocks_make_no_difference(values, size):
    """Wherever arrays are cut, the result is the mean in float64."""
    with mock.patch.object(merge, "_BLOCK", size):
        average = merge.Average(values[0])
        for n, value in enumerate(values[1:], start=1):
            average.update(value, 1 / (n + 1))
    result = average.value()
    exact = values.astype(np.float64).mean(0)
    # float64 rounds in each of at most four steps.
    tolerance = np.spacing(np.abs(values).max(0)) * (0.5 + 1e-6)
    assert np.all(np.abs(result - exact) <= tolerance)
    assert result.dtype == np.float32


def test_equal_inputs_stay_as_they_are(tmp_path):
    value = np.random.default_rng(0).normal(size=100)  # float64
    for i in range(7):
        checkpoint_files.write(
            OBJECT, str(tmp_path / f"ckpt-{i}"), {"w": value}
        )
    swa_tf.average_checkpoints(tmp_path, tmp_path / "average")
    result = checkpoint_files.read(
        OBJECT, str(tmp_path / "average"), {"w": value}
    )
    np.testing.assert_array_equal(result["w"], value)


MEMORY = """
import resource, sys
import swa_tf, swa_tf.checkpoints
*paths, warm, output = sys.argv[1:]

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

swa_tf.average_checkpoints([warm], warm + "-copy")
before = peak()
swa_tf.average_checkpoints(paths, output)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("n_tensors", [1, 8])
def test_memory_depends_on_one_checkpoint_only(n_tensors, tmp_path):
    size = (96 << 20) // n_tensors
    values = {f"w{i}": np.ones(size // 4, np.float32) for i in range(n_tensors)}
    paths = [str(tmp_path / f"ckpt-{i}") for i in range(4)]
    for path in paths:
        checkpoint_files.write(NAME, path, values)
    warm = str(tmp_path / "warm")
    checkpoint_files.write(NAME, warm, {"w": np.float32(1)})
    output = str(tmp_path / "average")
    program = programs.Program([*paths, warm, output], code=MEMORY)
    done = program.wait()
    checkpoint = size * n_tensors
    assert int(done.stdout.split()[-1]) <= 1.05 * (2 * checkpoint + 2 * size)


@pytest.mark.parametrize("limit", [1, 100, 250])
def test_shards_are_joined(limit, tmp_path, monkeypatch):
    """One file of data where the result fits into memory, else several."""
    rng = np.random.default_rng(0)
    models = [
        {f"w{i}": rng.normal(size=10).astype(np.float32) for i in range(5)}
        for _ in range(3)
    ]
    for i, values in enumerate(models):
        tf.train.Checkpoint(
            note=tf.Variable("a note"),
            step=tf.Variable(i),
            **{name: tf.Variable(value) for name, value in values.items()},
        ).write(str(tmp_path / f"ckpt-{i}"))
    monkeypatch.setattr(tensorflow_format, "_MAX_SHARD_BYTES", limit)
    monkeypatch.setattr(merge, "_MAX_GROUP", limit // 4)
    output = tmp_path / "new" / "average"
    swa_tf.average_checkpoints(tmp_path, output)
    variables = {name: tf.Variable(v) for name, v in models[0].items()}
    note, step = tf.Variable(""), tf.Variable(7)
    read = tf.train.Checkpoint(note=note, step=step, **variables)
    read.read(str(output)).assert_consumed()
    assert note.numpy() == b"a note"
    assert step.numpy() == 2
    for name, variable in variables.items():
        exact = np.mean([model[name] for model in models], 0, np.float64)
        np.testing.assert_array_equal(variable, exact.astype(np.float32))
    shards = [p for p in output.parent.iterdir() if ".data-" in p.name]
    # Of 40 bytes each, and the graph, the note and the step.
    assert len(shards) == {1: 8, 100: 3, 250: 1}[limit]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("form", checkpoint_files.FORMS)
def test_empty_tensors(form, dtype, tmp_path):
    like = {"empty": np.zeros((0, 3), dtype), "w": np.zeros(2, dtype)}
    paths = []
    for i in range(2):
        path = checkpoint_files.path_of(form, str(tmp_path), f"ckpt-{i}")
        checkpoint_files.write(form, path, {**like, "w": like["w"] + 2 * i})
        paths.append(path)
    output = checkpoint_files.path_of(form, str(tmp_path), "average")
    swa_tf.average_checkpoints(paths, output)
    found = checkpoint_files.read(form, output, like)
    assert found["empty"].shape == (0, 3)
    assert found["w"].tolist() == [1.0, 1.0]


def test_tables_of_many_blocks_are_tensorflows(tmp_path):
    """TensorFlow reads ours, we read TensorFlow's."""
    values = {f"{'long' * 30}{i}": np.float32(i) for i in range(3000)}
    path = str(tmp_path / "ckpt")
    tf.raw_ops.SaveV2(
        prefix=path,
        tensor_names=list(values),
        shape_and_slices=[""] * len(values),
        tensors=[tf.constant(value) for value in values.values()],
    )
    swa_tf.average_checkpoints([path], str(tmp_path / "average"))
    index = os.path.getsize(tmp_path / "average.index")
    assert index > 1 << 16
    written = _contents(tmp_path / "average")
    assert written == values


@pytest.mark.parametrize("form", FORMS)
def test_what_was_averaged_is_written_beside_it(form, tmp_path):
    paths = []
    for i in range(2):
        paths.append(checkpoint_files.path_of(form, str(tmp_path), f"m-{i}"))
        checkpoint_files.write_trained(form, paths[-1], seed=i)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    output = checkpoint_files.path_of(form, str(tmp_path), "average")
    report = swa_tf.average_checkpoints(paths, output)
    with open(f"{output}.json", encoding="utf-8") as file:
        assert json.load(file) == report
    assert [each["path"] for each in report["inputs"]] == paths
    assert [each["share"] for each in report["inputs"]] == [0.5, 0.5]
    assert report["newest"] == paths[1]
    files = {os.path.basename(p) for p in checkpoint_files.files(form, output)}
    made = {p.name for p in tmp_path.iterdir()} - {p.name for p in before}
    assert made == {*files, os.path.basename(output) + ".json"}
    for path, written in before.items():
        assert path.stat().st_mtime_ns == written


@pytest.mark.parametrize("form", FORMS)
def test_batch_norm_is_told(form, tmp_path):
    paths = []
    for i in range(2):
        paths.append(checkpoint_files.path_of(form, str(tmp_path), f"m-{i}"))
        tf.keras.backend.clear_session()  # the same names in each
        checkpoint_files.write_trained(form, paths[-1], seed=i)
    output = checkpoint_files.path_of(form, str(tmp_path), "average")
    if form == NAME:  # written without batch normalization
        assert not swa_tf.average_checkpoints(paths, output)[
            "batch_norm_statistics"
        ]
        return
    with pytest.warns(UserWarning, match="'average.*refit_batch_norm"):
        report = swa_tf.average_checkpoints(paths, output)
    assert len(report["batch_norm_statistics"]) == 2
    copied = checkpoint_files.path_of(form, str(tmp_path), "copy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = swa_tf.average_checkpoints(paths[:1], copied)
    assert not report["batch_norm_statistics"]  # they are the weights' own
