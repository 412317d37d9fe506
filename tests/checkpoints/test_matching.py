"""Weights of two files are matched by what they are, not by their keys."""

import io
import itertools
import os
import pathlib
import random
import shutil
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.checkpoints import paths as paths_lib
from swa_tf.support import compat
from tests import checkpoint_files, fitting
from tests.checkpoint_files import H5, KERAS, WEIGHTS

pytestmark = pytest.mark.filterwarnings("ignore:.*refit_batch_norm")


def _model(**names):
    """Two dense layers of one shape, and batch normalization."""
    return tf.keras.Sequential(
        [
            tf.keras.layers.Input([3]),
            tf.keras.layers.Dense(3, name=names.get("first")),
            tf.keras.layers.BatchNormalization(),
            tf.keras.layers.Dense(3, name=names.get("second")),
        ]
    )


def _fill(model, value):
    """Fills weight i with `value` + i."""
    model.set_weights(
        [
            np.full(w.shape, value + i, np.float32)
            for i, w in enumerate(model.get_weights())
        ]
    )


def _check_filled(model, value):
    for i, weight in enumerate(model.get_weights()):
        np.testing.assert_array_equal(weight, np.full(weight.shape, value + i))


def _save(model, path):
    if path.endswith((WEIGHTS, ".weights.json")):
        model.save_weights(path)
    else:
        model.save(path)


@pytest.mark.filterwarnings("ignore:.*HDF5 file")
@pytest.mark.parametrize(
    ("form", "compiled"),
    fitting.covering(1, [H5, WEIGHTS, KERAS], [True, False]),
)
def test_one_architecture_built_twice_in_a_process(compiled, form, tmp_path):
    tf.keras.backend.clear_session()
    paths = []
    for i in range(2):
        model = _model()  # `dense`, `dense_1`, then `dense_2`, `dense_3`
        if compiled:
            model.compile(tf.keras.optimizers.Adam(), "mse")
            model.train_on_batch(np.ones([2, 3]), np.ones([2, 3]))
        _fill(model, 2.0 * i)
        paths.append(str(tmp_path / f"m-{i}{form}"))
        _save(model, paths[-1])
    output = str(tmp_path / f"average{form}")
    report = swa_tf.average_checkpoints(paths, output)
    assert len(report["averaged"]) == 8
    _fill(model, 9.0)
    model.load_weights(output)
    _check_filled(model, 1.0)


@pytest.mark.filterwarnings("ignore:.*HDF5 file")
@pytest.mark.skipif(compat.KERAS_3, reason="Keras 3 writes no such files")
def test_weights_alone_in_h5_files(tmp_path):
    tf.keras.backend.clear_session()
    for i in range(2):
        model = _model()
        _fill(model, 2.0 * i)
        model.save_weights(str(tmp_path / f"m-{i}.h5"))
    swa_tf.average_checkpoints(tmp_path, tmp_path / "average.h5")
    _fill(model, 9.0)
    model.load_weights(str(tmp_path / "average.h5"))
    _check_filled(model, 1.0)


DATA = pathlib.Path(__file__).parents[1] / "data"


@pytest.mark.parametrize("form", [WEIGHTS, KERAS])
@pytest.mark.parametrize(
    ("first", "second"),
    itertools.permutations([path.name for path in DATA.glob("tensor*")], 2),
)
def test_files_of_two_stacks(first, second, form, tmp_path):
    """One architecture, written by one Keras and by another."""
    paths = [DATA / first / f"model-1{form}", DATA / second / f"model-2{form}"]
    output = tmp_path / f"average{form}"
    report = swa_tf.average_checkpoints(paths, output)
    assert len(report["averaged"]) == 6
    a, b, mean = (_layers(path) for path in (*paths, output))
    assert mean.keys() == a.keys() == b.keys()
    for key, value in mean.items():
        exact = (a[key].astype(np.float64) + b[key]) / 2
        np.testing.assert_array_equal(value, exact.astype(np.float32))


def _layers(path):
    """The weights of the layers in a file, by no code of `swa_tf`."""
    if path.suffix == KERAS:
        with zipfile.ZipFile(path) as file:
            path = io.BytesIO(file.read("model.weights.h5"))
    found = {}
    with h5py.File(path) as file:
        file["layers"].visititems(
            lambda key, item: (
                found.update({key: item[()]})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    return found


@pytest.mark.filterwarnings("ignore:.*HDF5 file")
def test_layers_of_the_same_names_are_matched_by_them(tmp_path):
    """In another order: Keras would load them by place, and so wrongly."""
    for i, names in enumerate([("a", "b"), ("b", "a")]):
        with h5py.File(tmp_path / f"m-{i}.h5", "w") as file:
            file.attrs["layer_names"] = [name.encode() for name in names]
            for j, name in enumerate("ab"):
                file[f"{name}/kernel"] = np.float32([2 * i + 10 * j])
                file[name].attrs["weight_names"] = [b"kernel"]
    swa_tf.average_checkpoints(tmp_path, tmp_path / "average.h5")
    with h5py.File(tmp_path / "average.h5") as file:
        assert [file[f"{name}/kernel"][0] for name in "ab"] == [1.0, 11.0]


def test_names_of_very_many_layers(tmp_path):
    """Keras splits a list that is too long for one attribute."""
    for i, prefix in enumerate("ab"):
        with h5py.File(tmp_path / f"m-{i}.h5", "w") as file:
            for j in range(4):
                name = f"{prefix}{j}"
                file[f"{name}/kernel"] = np.float32([2 * i + 10 * j])
                file[name].attrs["weight_names"] = [b"kernel"]
            for part in range(2):
                file.attrs[f"layer_names{part}"] = [
                    f"{prefix}{j}".encode()
                    for j in (3 - 2 * part, 2 - 2 * part)
                ]
    swa_tf.average_checkpoints(tmp_path, tmp_path / "average.h5")
    with h5py.File(tmp_path / "average.h5") as file:
        assert [file[f"b{j}/kernel"][0] for j in range(4)] == [1, 11, 21, 31]


@pytest.mark.parametrize("frozen_in", [0, 1])
@pytest.mark.parametrize("name", ["optimizer", "z_optimizer"])
def test_layers_frozen_in_one(frozen_in, name, tmp_path):
    """Keras 3 stores the kernels under the list of what is trained."""
    paths = []
    for i in range(2):
        model = _model()
        model.layers[0].trainable = i != frozen_in
        optimizer = tf.keras.optimizers.SGD(momentum=0.5)
        optimizer.build(model.trainable_variables)
        _fill(model, 2.0 * i)
        paths.append(str(tmp_path / f"ckpt-{i}"))
        checkpoint = tf.train.Checkpoint(model=model, **{name: optimizer})
        checkpoint.write(paths[-1])
    output = str(tmp_path / "average")
    report = swa_tf.average_checkpoints(paths, output)
    assert len(report["averaged"]) == 8
    _fill(model, 9.0)
    checkpoint.read(output).assert_consumed()
    _check_filled(model, 1.0)
    fresh = _model()
    tf.train.Checkpoint(model=fresh).read(output).expect_partial()
    _check_filled(fresh, 1.0)


@pytest.fixture
def exported(tmp_path):
    """Paths of two exports, and the model of the second."""
    paths = []
    for i in range(2):
        model = _model()
        _fill(model, 2.0 * i)
        paths.append(str(tmp_path / "run" / f"export-{9 + i}"))
        if compat.KERAS_3:
            model.export(paths[-1], verbose=False)
        else:
            model.save(paths[-1])
    return paths, model


def _served(folder):
    served = tf.saved_model.load(folder)
    signature = served.signatures["serving_default"]
    (name,) = signature.structured_input_signature[1]
    (output,) = signature(**{name: tf.ones([1, 3])}).values()
    return output.numpy()


@pytest.mark.parametrize("given", ["folders", "prefixes", "directory"])
def test_saved_models(given, exported, tmp_path):
    paths, model = exported
    inputs = {
        "folders": paths,
        "prefixes": [f"{path}/variables/variables" for path in paths],
        "directory": tmp_path / "run",
    }[given]
    output = str(tmp_path / "average")
    report = swa_tf.average_checkpoints(inputs, output)
    assert report["newest"] == f"{paths[1]}/variables/variables"
    # Keras 3 writes each weight twice.
    assert len(report["averaged"]) == (16 if compat.KERAS_3 else 8)
    copied = str(tmp_path / "copied")
    shutil.copytree(paths[1], copied)
    for file in paths_lib.files(output):
        end = file[len(output) :]
        shutil.copy(file, f"{copied}/variables/variables{end}")
    _fill(model, 1.0)
    expected = model(tf.ones([1, 3]), training=False).numpy()
    np.testing.assert_allclose(_served(copied), expected, rtol=1e-6)


def test_windows_and_soups_of_saved_models(exported, tmp_path):
    paths, _ = exported
    written = swa_tf.average_windows(paths, tmp_path / "windows", 1)
    assert [os.path.basename(path) for path in written] == [
        "export-9",
        "export-10",
    ]
    soup = swa_tf.greedy_soup(paths, tmp_path / "soup", lambda path: 1.0)
    assert soup.paths == [f"{paths[0]}/variables/variables"]


def test_all_variables_of_an_export_in_any_order(tmp_path):
    """The list of all is last of what leads to a variable."""
    order = random.Random(0)
    for i in range(3):
        module = tf.Module()
        module.part = tf.Module()
        module.part.w = tf.Variable(2.0 * i)
        module.v = tf.Variable(2.0 * i + 10.0)
        variables = [module.part.w, module.v]
        order.shuffle(variables)
        if i == 2:
            variables.reverse()
        module._all_variables = variables
        tf.saved_model.save(module, str(tmp_path / "run" / f"export-{i}"))
    output = str(tmp_path / "average")
    swa_tf.average_checkpoints(tmp_path / "run", output)
    reader = tf.train.load_checkpoint(output)
    found = sorted(
        float(reader.get_tensor(key))
        for key, shape in reader.get_variable_to_shape_map().items()
        if "VARIABLE" in key and shape == []
    )
    assert found == [2.0, 12.0]


def test_a_module_whose_lists_only_hold_variables(tmp_path):
    """Where nothing else leads to a variable, its place in a list does."""
    for i in range(2):
        module = tf.Module()
        module.variables_ = [tf.Variable(2.0 * i), tf.Variable(2.0 * i + 10)]
        tf.train.Checkpoint(m=module).write(str(tmp_path / f"ckpt-{i}"))
    output = str(tmp_path / "average")
    swa_tf.average_checkpoints(tmp_path, output)
    tf.train.Checkpoint(m=module).read(output).expect_partial()
    assert [float(v) for v in module.variables_] == [1.0, 11.0]


# Sharded weights.

sharded = pytest.mark.skipif(
    not compat.KERAS_3, reason="Keras 2 writes no shards"
)


def _write_sharded(folder, i, suffix=".weights.json"):
    tf.keras.backend.clear_session()
    model = tf.keras.Sequential(
        [tf.keras.layers.Input([64])]
        + [tf.keras.layers.Dense(64) for _ in range(3)]
    )
    model.compile(tf.keras.optimizers.Adam(), "mse")
    model.optimizer.build(model.trainable_variables)
    _fill(model, 2.0 * i)
    path = str(folder / f"m-{i}{suffix}")
    model.save_weights(path, max_shard_size=40_000 / 2**30)
    return model, path


@sharded
@pytest.mark.parametrize("slots", ["keep", "drop"])
def test_sharded_weights(slots, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    models, paths = zip(*(_write_sharded(run, i) for i in range(2)))
    assert len(os.listdir(run)) > 6
    assert swa_tf.checkpoints_in(run) == list(paths)
    output = str(tmp_path / "average.weights.json")
    report = swa_tf.average_checkpoints(run, output, optimizer_slots=slots)
    assert len(report["averaged"]) == 6
    assert bool(report["dropped"]) == (slots == "drop")
    model = models[1]
    _fill(model, 9.0)
    if slots == "keep":
        model.load_weights(output)
    else:
        with pytest.warns(UserWarning, match="Skipping variable loading"):
            model.load_weights(output)
    _check_filled(model, 1.0)
    with pytest.raises(FileExistsError, match="`output` must not exist"):
        swa_tf.average_checkpoints(run, output)
    os.unlink(output)
    with pytest.raises(FileExistsError, match=r"average_0000\d\.weights\.h5"):
        swa_tf.average_checkpoints(run, output)


@sharded
def test_a_soup_of_sharded_weights(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (_, first), (model, second) = (_write_sharded(run, i) for i in range(2))

    def metric(path):
        model.load_weights(path)
        return -abs(float(np.ravel(model.get_weights()[0])[0]) - 1)

    soup = swa_tf.greedy_soup(run, tmp_path / "soup.weights.json", metric)
    assert (soup.paths, soup.metric) == ([first, second], 0.0)
    names = os.listdir(tmp_path)
    assert not [name for name in names if name.startswith(".")]


@sharded
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("shard missing", "shards m-1_00001.weights.h5 are missing"),
        ("json missing", "m-1.weights.json is missing"),
        ("json a text", "no list of shards"),
        ("no map", "no list of shards"),
        ("a map of numbers", "no list of shards"),
        ("a number for a map", "no list of shards"),
        ("another folder", r"shards ../x.weights.h5 are missing"),
        ("shard truncated", "no whole HDF5"),
    ],
)
def test_damaged_shards(damage, message, tmp_path):
    _, path = _write_sharded(tmp_path, 0)
    _, path = _write_sharded(tmp_path, 1)
    shard = tmp_path / "m-1_00001.weights.h5"
    text = {
        "json a text": "text",
        "no map": "{}",
        "a map of numbers": '{"weight_map": {"/a": 3}}',
        "a number for a map": '{"weight_map": 3}',
        "another folder": '{"weight_map": {"/a": "../x.weights.h5"}}',
    }
    if damage == "shard missing":
        shard.unlink()
    elif damage == "json missing":
        os.unlink(path)
    elif damage == "shard truncated":
        shard.write_bytes(shard.read_bytes()[:1000])
    else:
        (tmp_path / "m-1.weights.json").write_text(text[damage])
    before = checkpoint_files.contents(tmp_path)
    with pytest.raises(ValueError, match=f"`inputs` must .*{message}"):
        swa_tf.average_checkpoints(
            [str(tmp_path / f"m-{i}.weights.json") for i in range(2)],
            tmp_path / "new" / "average.weights.json",
        )
    assert checkpoint_files.contents(tmp_path) == before


def test_shards_by_hand(tmp_path):
    """On stacks whose Keras reads none, all the same; in `ram://` too."""
    for i in range(2):
        for j, name in enumerate(["kernel", "bias"]):
            with h5py.File(tmp_path / f"m-{i}_{j:05}.weights.h5", "w") as file:
                file[f"layers/{name}/vars/0"] = np.float32([2 * i + 10 * j])
        (tmp_path / f"m-{i}.weights.json").write_text(
            '{"metadata": {"total_size": 8}, "weight_map": {'
            f'"/layers/kernel/vars": "m-{i}_00000.weights.h5", '
            f'"/layers/bias/vars": ["m-{i}_00001.weights.h5"]}}}}'
        )
    ram = f"ram://{tmp_path.name}"
    for file in tmp_path.iterdir():
        tf.io.gfile.copy(str(file), f"{ram}/run/{file.name}")
    for run, target in [(tmp_path, str(tmp_path / "new")), (f"{ram}/run", ram)]:
        output = f"{target}/average.weights.json"
        report = swa_tf.average_checkpoints(run, output)
        assert len(report["averaged"]) == 2
        for j, name in enumerate(["kernel", "bias"]):
            with (
                tf.io.gfile.GFile(
                    f"{target}/average_{j:05}.weights.h5", "rb"
                ) as raw,
                h5py.File(raw) as file,
            ):
                assert file[f"layers/{name}/vars/0"][0] == 1.0 + 10 * j
