"""Averages of windows along a run."""

import os

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from tests.checkpoint_files import FORMS
from tests.chosen import make_run, read_one, strict_json, tree_of, write_all


@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_windows(window, tmp_path):
    numbers = {1: 1.0, 2: 7.0, 3: -2.0, 4: 100.0, 10: 0.3}
    write_all(tmp_path / "run", {f"ckpt-{n}": v for n, v in numbers.items()})
    output = tmp_path / "new" / "windows"
    written = swa_tf.average_windows(tmp_path / "run", output, window)
    names = [f"ckpt-{n}" for n in numbers][window - 1 :]
    assert written == [str(output / name) for name in names]
    values = np.float32(list(numbers.values())).astype(np.float64)
    for i, path in enumerate(written):
        expected = np.float32(values[i : i + window].mean())
        assert read_one(path) == expected
        report = strict_json(f"{path}.json")
        assert report["output"] == names[i]
        assert [
            os.path.basename(each["path"]) for each in report["inputs"]
        ] == [f"ckpt-{n}" for n in list(numbers)[i : i + window]]
    parts = (".data-00000-of-00001", ".index", ".json")
    files = ["checkpoint", *sorted(n + part for n in names for part in parts)]
    assert sorted(os.listdir(output)) == files
    assert os.listdir(output.parent) == ["windows"]
    assert tf.train.latest_checkpoint(output) == written[-1]


@pytest.mark.parametrize("form", FORMS)
def test_windows_of_every_form(form, tmp_path):
    values = {
        f"ckpt-{i}": {"w": np.float32(2**i), "n": np.int32(i)} for i in range(3)
    }
    paths = write_all(tmp_path / "run", values, form)
    output = f"{tmp_path / 'windows'}/"
    written = swa_tf.average_windows(paths, output, 2)
    assert [os.path.basename(path) for path in written] == [
        os.path.basename(path) for path in paths[1:]
    ]
    for i, path in enumerate(written):
        got = read_one(path, form, values["ckpt-0"])
        assert (got["w"], got["n"]) == (1.5 * 2**i, i + 1)
    # They are checkpoints like others, for instance for an average of them.
    assert swa_tf.checkpoints_in(output) == written


def test_windows_in_the_order_given(tmp_path):
    paths = make_run(tmp_path / "run")[::-1]
    written = swa_tf.average_windows(paths, tmp_path / "windows", 2)
    assert [os.path.basename(path) for path in written] == ["ckpt-2", "ckpt-1"]
    assert [read_one(path) for path in written] == [6, 1.5]


def test_windows_take_the_options(tmp_path):
    values = {"v": np.float32(0), "w": np.float32(0)}
    write_all(
        tmp_path / "run",
        {f"ckpt-{i}": dict.fromkeys("vw", np.float32(i)) for i in (1, 2, 3)},
    )
    patterns = (pattern for pattern in ["w"])  # passed once
    written = swa_tf.average_windows(
        tmp_path / "run", tmp_path / "windows", 2, from_newest=patterns
    )
    found = [read_one(path, like=values) for path in written]
    assert found == [{"v": 1.5, "w": 2}, {"v": 2.5, "w": 3}]


def test_windows_progress(tmp_path):
    make_run(tmp_path / "run", range(5))
    calls = []
    swa_tf.average_windows(
        tmp_path / "run",
        tmp_path / "windows",
        3,
        progress=lambda *call: calls.append(call),
    )
    done, totals = zip(*calls)
    assert len(set(totals)) == 1
    assert (np.diff([0, *done]) > 0).all()
    assert done[-1] == totals[0]
    # Three windows of three inputs: so much as three inputs thrice.
    one = []
    swa_tf.average_windows(
        swa_tf.checkpoints_in(tmp_path / "run", last=3),
        tmp_path / "one",
        3,
        progress=lambda *call: one.append(call),
    )
    assert totals[0] == 3 * one[0][1]


@pytest.mark.parametrize("damaged", [1, 2, 3])
def test_a_damaged_input_of_windows_leaves_nothing(damaged, tmp_path):
    paths = make_run(tmp_path / "run", range(1, 4))
    data = tmp_path / "run" / f"ckpt-{damaged}.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    before = tree_of(tmp_path)
    with pytest.raises(ValueError, match=paths[damaged - 1]):
        swa_tf.average_windows(paths, tmp_path / "new" / "windows", 1)
    assert tree_of(tmp_path) == before


@pytest.mark.parametrize(
    ("window", "received"),
    [
        (0, "an integer >= 1. Received: window=0"),
        (-1, "an integer >= 1. Received: window=-1"),
        (1.0, "an integer >= 1. Received: window=1.0"),
        (None, "an integer >= 1. Received: window=None"),
        (4, "at most 3, the number of inputs. Received: window=4"),
    ],
)
def test_bad_windows(window, received, tmp_path):
    paths = make_run(tmp_path / "run")
    before = tree_of(tmp_path)
    with pytest.raises(ValueError, match="`window` must be") as error:
        swa_tf.average_windows(paths, tmp_path / "windows", window)
    assert received in str(error.value)
    assert tree_of(tmp_path) == before


def test_windows_of_inputs_of_one_name(tmp_path):
    paths = [make_run(tmp_path / name, [1])[0] for name in "ab"]
    with pytest.raises(ValueError, match=r"names.*ckpt-1, ckpt-1"):
        swa_tf.average_windows(paths, tmp_path / "windows", 1)
    assert not (tmp_path / "windows").exists()


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_windows_replace_nothing(kind, tmp_path):
    paths = make_run(tmp_path / "run")
    output = tmp_path / "windows"
    if kind == "folder":
        output.mkdir()
    elif kind == "file":
        output.touch()
    else:
        output.symlink_to("nowhere")
    before = tree_of(tmp_path)
    with pytest.raises(FileExistsError, match="`output_dir` must not exist"):
        swa_tf.average_windows(paths, output, 1)
    assert tree_of(tmp_path) == before


@pytest.mark.parametrize("output", ["", ".", "..", "new/..", 7, b"x"])
def test_windows_need_the_name_of_a_folder(output, tmp_path, monkeypatch):
    paths = make_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    before = tree_of(tmp_path)
    error = ValueError if isinstance(output, str) else TypeError
    with pytest.raises(error, match="`output_dir` must be a path"):
        swa_tf.average_windows(paths, output, 1)
    assert tree_of(tmp_path) == before


def test_bad_options_of_windows(tmp_path):
    paths = make_run(tmp_path / "run")
    before = tree_of(tmp_path)
    for name, value, error in (
        ("optimizer_slots", "all", ValueError),
        ("from_newest", ["no such"], ValueError),
        ("from_newest", [b"w"], ValueError),
        ("from_newest", 3, TypeError),
    ):
        options = {name: value}
        with pytest.raises(error, match=f"`{name}` must"):
            swa_tf.average_windows(paths, tmp_path / "new", 2, **options)
    assert tree_of(tmp_path) == before
