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
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

import swa_tf
from swa_tf.checkpoints import weighted_mean
from swa_tf.support import compat
from tests import checkpoint_files, programs
from tests.checkpoint_files import FORMS, H5, KERAS, NAME, OBJECT, WEIGHTS
from tests.fitting import exhaustive
from tests.trained import contents_of, make_model, save_trained, trackables_of

pytestmark = pytest.mark.filterwarnings("ignore:.*refit_batch_norm")


def _load(form, path):
    """A model from a file, with what else a checkpoint has."""
    model = make_model()
    trackables = trackables_of(model)
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
    model = make_model()
    trackables = trackables_of(model)
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
            save_trained(form, model, trackables, path)
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
        model = make_model()
        checkpoint = tf.train.Checkpoint(**trackables_of(model))
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
    assert bool(under_optimizer) == compat.KERAS_3
    report = swa_tf.average_checkpoints(
        run["paths"][OBJECT], "unused", dry_run=True
    )
    assert len(report["averaged"]) == 8
    assert {f"{name}{_SUFFIX}" for name in report["averaged"]} >= (
        under_optimizer
    )


_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


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


WRITTEN = pathlib.Path(__file__).parents[1] / "data"


def _floats(form, path):
    """All tensors of floating point in a file, by no code of `swa_tf`."""
    if form == OBJECT:
        found = contents_of(path).values()
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
    with mock.patch.object(weighted_mean, "_BLOCK", size):
        average = weighted_mean.Average(values[0])
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
def test_memory_depends_on_one_checkpoint_only(
    n_tensors, tmp_path, monkeypatch
):
    # What is freed goes back at once; glibc else keeps some, as it happens.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 20))
    size = (32 << 20) // n_tensors
    values = {f"w{i}": np.ones(size // 4, np.float32) for i in range(n_tensors)}
    paths = [str(tmp_path / f"ckpt-{i}") for i in range(12)]
    for path in paths:
        checkpoint_files.write(NAME, path, values)
    warm = str(tmp_path / "warm")
    checkpoint_files.write(NAME, warm, {"w": np.float32(1)})
    output = str(tmp_path / "average")
    program = programs.Program([*paths, warm, output], code=MEMORY)
    done = program.wait()
    # TensorFlow's threads may hold up to one more for a moment; all the inputs
    # would be twelve.
    checkpoint = size * n_tensors
    assert int(done.stdout.split()[-1]) <= 1.05 * (3 * checkpoint + 2 * size)


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
    way_out = "refit_batch_norm.*none of `tf.keras`.* in training mode"
    with pytest.warns(UserWarning, match=f"'average.*{way_out}"):
        report = swa_tf.average_checkpoints(paths, output)
    assert len(report["batch_norm_statistics"]) == 2
    copied = checkpoint_files.path_of(form, str(tmp_path), "copy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = swa_tf.average_checkpoints(paths[:1], copied)
    assert not report["batch_norm_statistics"]  # they are the weights' own
