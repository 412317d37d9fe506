"""Checkpoints on file systems that only TensorFlow knows, such as `ram://`."""

import json
import os
import shutil
import uuid

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import atomic_files
from tests import checkpoint_files
from tests.checkpoint_files import FORMS, KERAS, NAME, OBJECT, command_line

LIKE = {"w": np.zeros(3, np.float32), "n": np.int64(0)}


@pytest.fixture
def ram():
    """A folder in memory that no other test has."""
    return f"ram://{uuid.uuid4().hex}"


def write(form, folder, tmp_path, names=("ckpt-1", "ckpt-2")):
    """Checkpoints of 1, 2, ... in a folder of any file system."""
    paths = []
    for i, name in enumerate(names, start=1):
        values = {"w": np.full(3, i, np.float32), "n": np.int64(i)}
        local = checkpoint_files.path_of(form, tmp_path, name)
        checkpoint_files.write(form, local, values)
        for file in checkpoint_files.files(form, local):
            target = os.path.join(folder, os.path.basename(file))
            tf.io.gfile.copy(file, target)
            os.unlink(file)
        paths.append(checkpoint_files.path_of(form, folder, name))
        tf.keras.backend.clear_session()
    return paths


def read(form, path, tmp_path):
    """The values of a checkpoint in any file system."""
    local = checkpoint_files.path_of(form, tmp_path, "copied")
    for source, file in zip(
        checkpoint_files.files(form, path), checkpoint_files.files(form, local)
    ):
        tf.io.gfile.copy(source, file, overwrite=True)
    found = checkpoint_files.read(form, local, LIKE)
    for file in checkpoint_files.files(form, local):
        os.unlink(file)
    return found["w"].tolist(), int(found["n"])


def listed(folder):
    """The names of all in a folder; of a folder that is not there none."""
    try:
        return sorted(tf.io.gfile.listdir(folder))
    except tf.errors.NotFoundError:
        return []


@pytest.mark.parametrize("to_ram", [True, False])
@pytest.mark.parametrize("from_ram", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_in_and_out(form, from_ram, to_ram, ram, tmp_path):
    local = tmp_path / "local"
    local.mkdir()
    source = f"{ram}/run" if from_ram else str(local / "run")
    target = f"{ram}/new/folder" if to_ram else str(local / "new")
    if not from_ram:
        os.mkdir(source)
    paths = write(form, source, tmp_path)
    output = checkpoint_files.path_of(form, target, "average")
    report = swa_tf.average_checkpoints(paths, output)
    assert read(form, output, tmp_path) == ([1.5] * 3, 2)
    files = [*checkpoint_files.files(form, output), f"{output}.json"]
    if form in (OBJECT, NAME):
        files.append(f"{target}/checkpoint")
        assert tf.train.latest_checkpoint(target) == output
    assert listed(target) == sorted(map(os.path.basename, files))
    with tf.io.gfile.GFile(f"{output}.json") as file:
        assert json.load(file) == report
    with pytest.raises(FileExistsError, match="`output` must not exist"):
        swa_tf.average_checkpoints(paths, output)


def test_a_file_at_the_root(ram, tmp_path):
    paths = write(NAME, "ram://", tmp_path, [ram[6:], f"{ram[6:]}x"])
    swa_tf.average_checkpoints(paths, f"{ram}-average")
    assert read(NAME, f"{ram}-average", tmp_path) == ([1.5] * 3, 2)


def test_a_checkpoint_with_a_graph(ram):
    checkpoint = tf.train.Checkpoint(w=tf.Variable([1.0, 2.0]))
    manager = tf.train.CheckpointManager(checkpoint, ram, max_to_keep=None)
    manager.save()
    checkpoint.w.assign([3.0, 6.0])
    manager.save()
    assert swa_tf.checkpoints_in(ram) == manager.checkpoints
    swa_tf.average_checkpoints(ram, f"{ram}/new/average")
    checkpoint.read(f"{ram}/new/average").assert_consumed()
    assert checkpoint.w.numpy().tolist() == [2.0, 4.0]


def test_listing(ram, tmp_path):
    names = ["ckpt-9", "ckpt-10", "ckpt-11"]
    paths = write(NAME, ram, tmp_path, names)
    assert swa_tf.checkpoints_in(ram) == paths
    assert swa_tf.checkpoints_in(ram, last=2) == paths[1:]
    assert swa_tf.checkpoints_in(f"{ram}/", every=2) == [
        f"{ram}/ckpt-9",
        f"{ram}/ckpt-11",
    ]
    with pytest.raises(FileNotFoundError, match="`directory` must be a folder"):
        swa_tf.checkpoints_in(f"{ram}-none")
    with pytest.raises(FileNotFoundError, match="must be checkpoints that ex"):
        swa_tf.average_checkpoints([f"{ram}/none"], f"{ram}/average")


@pytest.mark.parametrize("form", [OBJECT, KERAS])
def test_a_file_system_that_tensorflow_does_not_know(form, tmp_path, capsys):
    known = checkpoint_files.path_of(form, str(tmp_path), "m-1")
    checkpoint_files.write(form, known, LIKE)
    folder = "nowhere://bucket/run"
    unknown = checkpoint_files.path_of(form, folder, "m-2")
    output = checkpoint_files.path_of(form, str(tmp_path), "average")
    calls = [
        lambda: swa_tf.average_checkpoints([known, unknown], output),
        lambda: swa_tf.average_checkpoints(folder, output),
        lambda: swa_tf.average_checkpoints([known], unknown),
        lambda: swa_tf.checkpoints_in(folder),
    ]
    for call in calls:
        with pytest.raises(OSError, match="'nowhere' not impl") as error:
            call()
        assert f"'{folder}" in str(error.value)
    for given in (
        [unknown],
        [f"{folder}/*"],
        [f"--checkpoint_dir={folder}"],
    ):
        assert command_line(f"--output_path={output}", *given) == 1
        assert "error: 'nowhere://bucket/run" in capsys.readouterr().err


@pytest.mark.parametrize("form", [OBJECT, KERAS])
def test_damage_leaves_nothing(form, ram, tmp_path):
    paths = write(form, f"{ram}/run", tmp_path)
    file = checkpoint_files.files(form, paths[0])[0]
    with tf.io.gfile.GFile(file, "rb") as opened:
        content = opened.read()
    tf.io.gfile.remove(file)  # `ram://` does not cut off what is written anew
    with tf.io.gfile.GFile(file, "wb") as opened:
        opened.write(content[: len(content) // 2])
    output = checkpoint_files.path_of(form, f"{ram}/new", "average")
    with pytest.raises(ValueError, match=f"`inputs` must be whole.*{paths[0]}"):
        swa_tf.average_checkpoints(paths, output)
    assert listed(f"{ram}/new") == []


@pytest.mark.parametrize("function", ["copy", "rename"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, "full"])
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("after", [True, False])
def test_a_failure_leaves_nothing(
    function, error, number, after, ram, tmp_path, monkeypatch
):
    if error == "full":
        error = tf.errors.ResourceExhaustedError(None, None, "it is full")
    paths = write(OBJECT, f"{ram}/run", tmp_path)
    before, calls = listed(f"{ram}/run"), []
    do = getattr(tf.io.gfile, function)

    def fails(*args, **kwargs):
        calls.append(args)
        if len(calls) <= number or after:
            do(*args, **kwargs)
        if len(calls) == number + 1:
            raise error

    monkeypatch.setattr(tf.io.gfile, function, fails)
    with pytest.raises((KeyboardInterrupt, OSError)) as raised:
        swa_tf.average_checkpoints(paths, f"{ram}/run/average")
    if not isinstance(raised.value, KeyboardInterrupt):
        assert "cannot be written: it is full" in str(raised.value)
    assert listed(f"{ram}/run") == before


def test_a_failed_copy_takes_nothing_of_other_averages(
    ram, tmp_path, monkeypatch
):
    """The file `checkpoint` names them until it is replaced."""
    paths = write(OBJECT, f"{ram}/run", tmp_path)
    swa_tf.average_checkpoints(paths, f"{ram}/averages/a")
    before, copy = listed(f"{ram}/averages"), tf.io.gfile.copy

    def fails(source, target, **kwargs):
        if os.path.basename(source) == "checkpoint":
            raise tf.errors.ResourceExhaustedError(None, None, "it is full")
        copy(source, target, **kwargs)

    monkeypatch.setattr(tf.io.gfile, "copy", fails)
    with pytest.raises(OSError, match="it is full"):
        swa_tf.average_checkpoints(paths, f"{ram}/averages/b")
    assert listed(f"{ram}/averages") == before
    latest = tf.train.latest_checkpoint(f"{ram}/averages")
    assert latest == f"{ram}/averages/a"


def test_what_counts_is_there_last(ram, tmp_path, monkeypatch):
    paths = write(OBJECT, f"{ram}/run", tmp_path)
    rename, moved = tf.io.gfile.rename, []

    def renamed(source, target, overwrite):
        assert os.path.basename(source).startswith(".")
        moved.append(os.path.basename(target))
        rename(source, target, overwrite)

    monkeypatch.setattr(tf.io.gfile, "rename", renamed)
    swa_tf.average_checkpoints(paths, f"{ram}/average")
    data = "average.data-00000-of-00001"
    assert moved == ["average.json", data, "average.index", "checkpoint"]


def test_what_another_has_written_meanwhile_stays(ram, tmp_path):
    """Between the check and the rename."""
    (tmp_path / "x").write_text("ours")
    with tf.io.gfile.GFile(f"{ram}/x", "w") as file:
        file.write("theirs")
    with pytest.raises(OSError, match="x' exists"):
        atomic_files.move([tmp_path / "x"], ram)
    assert listed(ram) == ["x"]
    with tf.io.gfile.GFile(f"{ram}/x") as file:
        assert file.read() == "theirs"


def test_windows(ram, tmp_path):
    names = ["ckpt-1", "ckpt-2", "ckpt-3"]
    write(NAME, f"{ram}/run", tmp_path, names)
    written = swa_tf.average_windows(f"{ram}/run", f"{ram}/means", 2)
    assert written == [f"{ram}/means/ckpt-2", f"{ram}/means/ckpt-3"]
    found = [read(NAME, path, tmp_path) for path in written]
    assert found == [([1.5] * 3, 2), ([2.5] * 3, 3)]
    with pytest.raises(FileExistsError, match="`output_dir` must not exist"):
        swa_tf.average_windows(f"{ram}/run", f"{ram}/means", 2)


def test_soup(ram, tmp_path):
    def metric(path):
        reader = tf.compat.v1.train.NewCheckpointReader(path)
        return -abs(reader.get_tensor("w")[0] - 1.4)

    write(NAME, f"{ram}/run", tmp_path)
    soup = swa_tf.greedy_soup(f"{ram}/run", f"{ram}/soup", metric)
    assert soup.paths == [f"{ram}/run/ckpt-1", f"{ram}/run/ckpt-2"]
    assert read(NAME, f"{ram}/soup", tmp_path) == ([1.5] * 3, 2)


def test_averages_of_workers(ram):
    weight = tf.Variable(1.0)
    workers = [swa_tf.StochasticWeightAveraging() for _ in range(2)]
    for i, worker in enumerate(workers):
        weight.assign(1.0 + 2.0 * i)
        worker.apply([weight])
    tf.train.Checkpoint(swa=workers[1]).write(f"{ram}/worker")
    swa_tf.merge_averages(workers[0], [f"{ram}/worker"])
    assert float(workers[0].average(weight)) == 2.0


@pytest.mark.parametrize("form", [NAME, KERAS])
def test_the_command(form, ram, tmp_path):
    paths = write(form, f"{ram}/run", tmp_path)
    pattern = checkpoint_files.path_of(form, f"{ram}/run", "ckpt-*")
    ways = [f"--checkpoint_dir={ram}/run"], [f"--checkpoints={pattern}"], paths
    for i, way in enumerate(ways):
        output = checkpoint_files.path_of(form, f"{ram}/new", f"average-{i}")
        assert command_line(f"--output_path={output}", *way) == 0
        assert read(form, output, tmp_path) == ([1.5] * 3, 2)
        assert command_line(f"--output_path={output}", *way) == 1  # is there


def test_the_scratch_files_are_gone(ram, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    paths = write(OBJECT, f"{ram}/run", tmp_path)
    swa_tf.average_checkpoints(paths, f"{ram}/average")
    assert list((tmp_path / "temporary").iterdir()) == []
    shutil.rmtree(tmp_path / "temporary")
    with pytest.raises(OSError, match="temporary"):
        swa_tf.average_checkpoints(paths, f"{ram}/again")
    assert listed(f"{ram}/again") == []
