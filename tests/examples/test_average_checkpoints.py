"""The example that averages a run's checkpoints, on digits and small SVHN."""

import re

import numpy as np
import pytest
import tensorflow as tf
from scipy.io import savemat

from examples import data
from tests.examples.running import assert_refused, output_of

QUICK = ["--epochs=8", "--keep_from=3"]
EXAMPLE = "average_checkpoints"


def _rows(output):
    """The numbers of the table, by the name of the row."""
    rows = re.findall(
        r"^(epoch \d+|mean|averaged weights) +(.*)$", output, re.M
    )
    return {name: [float(v) for v in values.split()] for name, values in rows}


def _svhn(folder, n=40, **changes):
    """`train_32x32.mat` and `test_32x32.mat` as they are distributed."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, [n, 32, 32, 3], dtype=np.uint8)
    digits = np.arange(n) % 10
    arrays = {
        "X": images.transpose(1, 2, 3, 0),
        "y": np.where(digits == 0, 10, digits).astype(np.uint8)[:, None],
        **changes,
    }
    for name in ("train_32x32.mat", "test_32x32.mat"):
        savemat(folder / name, arrays)
    return images, digits


@pytest.mark.slow
def test_digits(tmp_path):
    output = output_of(EXAMPLE, *QUICK, f"--output_dir={tmp_path / 'run'}")
    rows = _rows(output)
    epochs = range(3, 8)
    checkpoints = [rows[f"epoch {i}"] for i in epochs]
    # The table has two decimals.
    mean = np.mean(checkpoints, axis=0)
    np.testing.assert_allclose(rows["mean"], mean, atol=0.011)
    assert len(rows["averaged weights"]) == 2
    assert (rows["averaged weights"] > mean).all()  # what it shows
    gain = rows["averaged weights"][1] - rows["mean"][1]
    said = re.search(r"averaging gained (\S+) points", output)
    assert float(said.group(1)) == pytest.approx(gain, abs=0.02)
    assert rows["averaged weights"][1] > 80  # refit; it has learned
    files = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert [f for f in files if f.endswith(".index")] == [
        f"ckpt-{i}.index" for i in epochs
    ]
    png = (tmp_path / "run" / "accuracies.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    reader = tf.train.load_checkpoint(str(tmp_path / "run" / "average"))
    stored = [
        tf.train.load_checkpoint(
            str(tmp_path / "run" / f"checkpoints/ckpt-{i}")
        )
        for i in epochs
    ]
    for key, dtype in reader.get_variable_to_dtype_map().items():
        if dtype.is_floating and "optimizer/_" not in key:
            exact = np.mean(
                [np.float64(each.get_tensor(key)) for each in stored], axis=0
            )
            np.testing.assert_allclose(
                reader.get_tensor(key), exact, rtol=1e-6, atol=1e-9
            )


@pytest.mark.slow
@pytest.mark.exhaustive
def test_svhn_of_files(tmp_path):
    _svhn(tmp_path)
    output = output_of(
        EXAMPLE,
        "--dataset=svhn",
        f"--data_dir={tmp_path}",
        "--epochs=2",
        "--keep_from=0",
        "--nobatch_norm",
    )
    assert "40 images learned, 40 held out" in output
    assert len(_rows(output)["averaged weights"]) == 1


def test_svhn_is_read_as_it_is_distributed(tmp_path):
    images, digits = _svhn(tmp_path)
    (learned, labels), _ = data.load("svhn", str(tmp_path), seed=0)
    for image, label in zip(learned, labels):
        (i,) = np.flatnonzero((images == image).all(axis=(1, 2, 3)))
        assert digits[i] == label


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"X": np.zeros([3, 32, 32, 4], np.uint8)}, "train_32x32.mat"),
        ({"y": np.zeros([40, 2], np.uint8)}, "train_32x32.mat"),
    ],
)
def test_malformed_svhn(changes, named, tmp_path):
    _svhn(tmp_path, **changes)
    with pytest.raises(data.DataError, match=named):
        data.load("svhn", str(tmp_path), seed=0)


def test_damaged_and_missing_svhn(tmp_path):
    with pytest.raises(data.DataError, match="train_32x32"):
        data.load("svhn", str(tmp_path), seed=0)
    _svhn(tmp_path)
    file = tmp_path / "test_32x32.mat"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(data.DataError, match="test_32x32"):
        data.load("svhn", str(tmp_path), seed=0)


def test_mnist(shared_data):
    folder = shared_data / "mnist"
    (images, labels), (_, held_out) = data.load(
        "mnist", str(folder), seed=0, train_size=50, test_size=20
    )
    assert images.shape == (50, 28, 28, 1)
    assert (len(labels), len(held_out)) == (50, 20)
    assert set(labels) <= set(range(10))


@pytest.mark.slow
def test_bad_flags():
    assert_refused("`--keep_from`", EXAMPLE, "--epochs=3", "--keep_from=3")
