"""The report of an average, its progress and its dry run."""

import contextlib
import datetime
import itertools
import os

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from tests import checkpoint_files
from tests.checkpoint_files import FORMS, H5, NAME, OBJECT
from tests.chosen import strict_json, tree_of, write_all

REPORTED = {
    "output",
    "form",
    "inputs",
    "newest",
    "n_parameters",
    "averaged",
    "from_newest",
    "dropped",
    "batch_norm_statistics",
    "guessed",
    "tensors",
    "weights",
    "decay",
    "written",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("slots", ["keep", "drop"])
@pytest.mark.filterwarnings("ignore:.*refit_batch_norm")
def test_json(form, slots, tmp_path):
    paths = []
    for i in (1, 2):
        name = f'ckpt "é {i}'
        paths.append(checkpoint_files.path_of(form, str(tmp_path), name))
        tf.keras.backend.clear_session()  # the same names in each
        checkpoint_files.write_trained(form, paths[-1], seed=i)
    output = checkpoint_files.path_of(form, str(tmp_path), "average")
    report = swa_tf.average_checkpoints(
        paths, output, weights=[1, 3.0], optimizer_slots=slots
    )
    assert strict_json(f"{output}.json") == report
    assert report.keys() == REPORTED
    assert report["output"] == os.path.basename(output)
    assert report["inputs"] == [
        {"path": paths[0], "share": 0.25},
        {"path": paths[1], "share": 0.75},
    ]
    assert report["newest"] == paths[1]
    assert report["weights"] == [1, 3]
    assert report["decay"] is None
    # Kernel and bias; gamma, beta and the statistics.
    batch_norm = form != NAME
    assert report["n_parameters"] == 6 + 3 + (12 if batch_norm else 0)
    assert len(report["averaged"]) == 2 + (4 if batch_norm else 0)
    assert len(report["batch_norm_statistics"]) == (2 if batch_norm else 0)
    assert set(report["batch_norm_statistics"]) <= set(report["averaged"])
    parts = ("averaged", "from_newest", "dropped")
    names = [name for part in parts for name in report[part]]
    assert len(set(names)) == len(names)
    assert bool(report["dropped"]) == (slots == "drop")
    assert report["guessed"] == []  # all is known
    assert report["tensors"].keys() == set(names)
    kernel = {"shape": [2, 3], "dtype": "float32"}
    kernels = [report["tensors"][name] for name in report["averaged"]]
    assert kernels.count(kernel) == 1
    if form in (OBJECT, NAME):
        held = {
            name.replace("/.ATTRIBUTES/VARIABLE_VALUE", "")
            for name, _ in tf.train.list_variables(paths[0])
        }
        assert set(names) == held
    written = datetime.datetime.fromisoformat(report["written"])
    now = datetime.datetime.now(datetime.timezone.utc)
    assert datetime.timedelta() <= now - written < datetime.timedelta(minutes=5)


@pytest.mark.parametrize("form", FORMS)
def test_progress(form, tmp_path):
    values = {
        f"ckpt-{i}": {
            "w": np.full(700_000, i, np.float32),
            "n": np.full(5, i, np.int32),
        }
        for i in (1, 2)
    }
    paths = write_all(tmp_path, values, form)
    calls = []
    output = checkpoint_files.path_of(form, str(tmp_path), "average")
    swa_tf.average_checkpoints(
        paths, output, progress=lambda *call: calls.append(call)
    )
    done, totals = zip(*calls)
    assert len(set(totals)) == 1
    size = 2 * (4 * 700_000 + 4 * 5)
    # An object-based checkpoint holds its graph, and a counter, as well.
    assert size <= totals[0] <= size + (2000 if form == OBJECT else 0)
    steps = np.diff([0, *done])
    assert (steps > 0).all()
    assert steps.max() == 4 * 700_000
    assert done[-1] == totals[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("error::UserWarning")
def test_dry_run(form, tmp_path):
    paths = []
    for i in (1, 2):
        paths.append(checkpoint_files.path_of(form, tmp_path, f"ckpt-{i}"))
        with pytest.warns() if form == H5 else contextlib.nullcontext():
            checkpoint_files.write_trained(form, paths[-1], seed=1)
    before, calls = tree_of(tmp_path), []
    output = checkpoint_files.path_of(form, str(tmp_path), "new/folder/x")
    dry = swa_tf.average_checkpoints(
        paths,
        output,
        decay=0.5,
        dry_run=True,
        progress=lambda *call: calls.append(call),
    )
    assert tree_of(tmp_path) == before
    assert calls == []
    with pytest.warns() if form != NAME else contextlib.nullcontext():
        report = swa_tf.average_checkpoints(paths, output, decay=0.5)
    assert {**dry, "written": 0} == {**report, "written": 0}
    with pytest.raises(FileExistsError):
        swa_tf.average_checkpoints(paths, output, dry_run=True)


def test_the_warning_of_batch_norm_is_at_the_callers_line(tmp_path):
    paths = [str(tmp_path / f"ckpt-{i}") for i in (1, 2)]
    for i, path in enumerate(paths):
        checkpoint_files.write_trained(OBJECT, path, seed=i)
    better = itertools.count()
    calls = [
        lambda: swa_tf.average_checkpoints(paths, tmp_path / "a"),
        lambda: swa_tf.average_windows(paths, tmp_path / "b", 2),
        lambda: swa_tf.greedy_soup(
            paths, tmp_path / "c", lambda _: next(better)
        ),
    ]
    for name, call in zip(("a", "ckpt-2", "c"), calls):
        with pytest.warns(UserWarning, match="refit_batch_norm") as warned:
            call()
        assert len(warned) == 1
        assert warned[0].filename == __file__
        assert f"'{name}' holds" in str(warned[0].message)
