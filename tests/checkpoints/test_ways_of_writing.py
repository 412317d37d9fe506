"""Types, byte orders and files of every kind are averaged and written."""

import io
import os
import zipfile

import h5py
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.checkpoints import tensorflow_format, weighted_mean
from tests import checkpoint_files
from tests.checkpoint_files import FORMS
from tests.trained import contents_of

pytestmark = pytest.mark.filterwarnings("ignore:.*refit_batch_norm")


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
    written = contents_of(output)
    np.testing.assert_array_equal(written["w"], exact)
    np.testing.assert_array_equal(written["b"], exact[0])


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
    monkeypatch.setattr(weighted_mean, "_MAX_GROUP", limit // 4)
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
    written = contents_of(tmp_path / "average")
    assert written == values
