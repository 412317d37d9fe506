"""The output directory of a run: killed at any moment, the run goes on."""

import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.cifar10 import run_directory
from benchmarks.cifar10.run_directory import Records, RunDirectory
from benchmarks.common.errors import BenchmarkError

SETTINGS = {"flags": {"epochs": 3, "seed": 0}, "stack": {"tensorflow": "2"}}


class Killed(BaseException):
    """Stands in for SIGKILL: nothing in the code under test catches it."""


def run(path, resume=True):
    """Three epochs: the variable is what the records say, at each end."""
    directory = RunDirectory(str(path), SETTINGS, resume)
    directory.start()
    variable = tf.Variable(0.0)
    checkpoint = tf.train.Checkpoint(variable=variable)
    records = directory.restore(checkpoint)
    assert float(variable) == sum(e["value"] for e in records.epochs)
    for epoch in range(len(records.epochs) + 1, 4):
        variable.assign_add(10.0**epoch)
        records.epochs.append({"epoch": epoch, "value": 10.0**epoch})
        records.seconds.append({"train": 0.1})
        directory.save_weights(f"epoch-{epoch:05d}", [variable])
        directory.save(checkpoint, records)
    directory.write("scalars", lambda p: os.mkdir(p))
    directory.write_text("results.md", "table")
    directory.write_json("results.json", {"sum": float(variable)})
    return directory


def weights(path):
    """Returns what was kept of each epoch, in their order."""
    kept = [np.load(file) for file in sorted((path / "weights").iterdir())]
    return [float(file["arr_0"]) for file in kept]


def kill_at(monkeypatch, n):
    """Kills before the n-th call that changes the directory."""
    calls = [0]

    def watch(owner, name):
        original = getattr(owner, name)

        def watched(*args, **kwargs):
            calls[0] += 1
            if calls[0] == n:
                raise Killed
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    for name in ("replace", "mkdir", "makedirs", "remove", "fsync"):
        watch(os, name)
    watch(shutil, "rmtree")
    watch(tf.train.Checkpoint, "write")


def test_killed_at_every_step(tmp_path, monkeypatch):
    n = 0
    while True:
        n += 1
        path = tmp_path / str(n)
        with monkeypatch.context() as patch:
            kill_at(patch, n)
            try:
                run(path)
                break
            except Killed:
                pass
        directory = run(path)
        assert directory.results() == {"sum": 1110.0}
        assert sorted(os.listdir(path)) == [
            "checkpoints",
            "results.json",
            "results.md",
            "scalars",
            "settings.json",
            "weights",
        ]
        assert weights(path) == [10.0, 110.0, 1110.0]
        assert os.listdir(path / "checkpoints") == ["epoch-00003"]
    assert n > 20, "fewer steps than there must be"


def test_files_appear_complete(tmp_path):
    directory = RunDirectory(str(tmp_path), SETTINGS, resume=False)
    directory.start()

    def make(path):
        with open(path, "w") as file:
            file.write("half")
            file.flush()
            assert not (tmp_path / "curves.png").exists()
        raise Killed

    with pytest.raises(Killed):
        directory.write("curves.png", make)
    assert not (tmp_path / "curves.png").exists()


def test_existing_directory_is_refused_and_untouched(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BenchmarkError, match=r"--output_dir.*mine.txt"):
        RunDirectory(str(tmp_path), SETTINGS, resume=False)
    with pytest.raises(BenchmarkError, match=r"--resume.*settings.json"):
        RunDirectory(str(tmp_path), SETTINGS, resume=True)
    assert os.listdir(tmp_path) == ["mine.txt"]
    assert (tmp_path / "mine.txt").read_text() == "mine"
    with pytest.raises(BenchmarkError, match="must be a directory"):
        RunDirectory(str(tmp_path / "mine.txt"), SETTINGS, resume=True)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("exists", [False, True])
def test_missing_or_empty_directory_starts(tmp_path, resume, exists):
    path = tmp_path / "a" / "b"
    if exists:
        path.mkdir(parents=True)
    directory = run(path, resume)
    assert directory.results() == {"sum": 1110.0}


def test_a_file_in_the_way_of_the_directory(tmp_path):
    (tmp_path / "file").touch()
    directory = RunDirectory(str(tmp_path / "file" / "a"), SETTINGS, False)
    with pytest.raises(BenchmarkError, match=r"--output_dir.*writable"):
        directory.start()


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("flags", "epochs", 4),
        ("flags", "seed", 1),
        ("stack", "tensorflow", "3"),
    ],
)
def test_other_settings_are_refused(tmp_path, part, name, value):
    run(tmp_path)
    other = {**SETTINGS, part: {**SETTINGS[part], name: value}}
    with pytest.raises(BenchmarkError, match=f"{name}.*{value}"):
        RunDirectory(str(tmp_path), other, resume=True)


def test_damaged_checkpoint_is_named(tmp_path):
    directory = run(tmp_path)
    path = tmp_path / "checkpoints" / "epoch-00003"
    checkpoint = tf.train.Checkpoint(variable=tf.Variable(0.0))
    index = path / "variables.index"
    index.write_bytes(index.read_bytes()[:-5])
    with pytest.raises(BenchmarkError, match="epoch-00003 cannot be restored"):
        directory.restore(checkpoint)
    (path / "records.json").write_text("{")
    with pytest.raises(BenchmarkError, match=r"records.json cannot be read"):
        directory.restore(checkpoint)


def test_records_without_figures_are_empty():
    assert Records().epochs == []
    assert Records().final is None
    assert run_directory.RESULTS == "results.json"
