"""The file `checkpoint`, by which TensorFlow finds an average."""

import os
import shutil

import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import atomic_files
from tests import checkpoint_files
from tests.checkpoint_files import H5, KERAS, WEIGHTS, contents
from tests.chosen import read_one, write_all


@pytest.fixture
def inputs(tmp_path):
    (tmp_path / "inputs").mkdir()
    return write_all(tmp_path / "inputs", {"ckpt-1": 1.0, "ckpt-2": 2.0})


def run_of(folder, n=3):
    """A training run with its manager, which keeps the last two."""
    checkpoint = tf.train.Checkpoint(w=tf.Variable(0.0))
    manager = tf.train.CheckpointManager(checkpoint, str(folder), 2)
    for _ in range(n):
        manager.save()
    return manager


def test_the_latest_average_is_found(inputs, tmp_path):
    folder = tmp_path / "averages"
    for name in ("b", "a"):
        output = str(folder / name)
        swa_tf.average_checkpoints(inputs, output)
        assert tf.train.latest_checkpoint(str(folder)) == output
    state = tf.train.get_checkpoint_state(str(folder))
    listed = [os.path.basename(p) for p in state.all_model_checkpoint_paths]
    assert listed == ["b", "a"]
    assert len(swa_tf.checkpoints_in(folder)) == 2


def test_a_folder_of_averages_can_be_moved(inputs, tmp_path):
    swa_tf.average_checkpoints(inputs, tmp_path / "averages" / "a")
    shutil.move(tmp_path / "averages", tmp_path / "moved")
    latest = tf.train.latest_checkpoint(str(tmp_path / "moved"))
    assert read_one(latest) == 1.5


def test_in_the_folder_of_the_process(inputs, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    swa_tf.average_checkpoints(inputs, "average")
    assert os.path.samefile(
        f"{tf.train.latest_checkpoint('.')}.index", "average.index"
    )


def test_an_average_that_was_deleted_is_listed_no_more(inputs, tmp_path):
    for name in ("a", "b", "c"):
        if name == "c":
            for file in tmp_path.glob("a.*"):
                file.unlink()
        swa_tf.average_checkpoints(inputs, tmp_path / name)
    state = tf.train.get_checkpoint_state(str(tmp_path))
    listed = [os.path.basename(p) for p in state.all_model_checkpoint_paths]
    assert listed == ["b", "c"]


def test_a_training_run_goes_on_from_its_own(tmp_path):
    manager = run_of(tmp_path)
    before = contents(tmp_path)
    swa_tf.average_checkpoints(tmp_path, tmp_path / "average")
    after = contents(tmp_path)
    assert {path: after[path] for path in before} == before
    assert tf.train.latest_checkpoint(str(tmp_path)) == f"{tmp_path}/ckpt-3"
    manager.save()
    assert read_one(tmp_path / "average") == 0.0  # it was not deleted


def test_a_run_without_the_file_gets_none(inputs, tmp_path):
    folder = tmp_path / "inputs"
    swa_tf.average_checkpoints(inputs, folder / "average")
    assert not (folder / "checkpoint").exists()
    assert tf.train.latest_checkpoint(str(folder)) is None


@pytest.mark.parametrize("content", ["", "\0", 'model_checkpoint_path: "x"'])
def test_a_file_of_others_stays(content, inputs, tmp_path):
    (tmp_path / "checkpoint").write_text(content)
    swa_tf.average_checkpoints(inputs, tmp_path / "average")
    assert (tmp_path / "checkpoint").read_text() == content


def test_a_pipe_of_others_stays(inputs, tmp_path):
    """It is not opened: a read would wait for somebody who writes."""
    os.mkfifo(tmp_path / "checkpoint")
    swa_tf.average_checkpoints(inputs, tmp_path / "average")
    assert (tmp_path / "checkpoint").is_fifo()


@pytest.mark.parametrize("form", [WEIGHTS, KERAS, H5])
def test_files_of_keras_have_none(form, three, tmp_path, monkeypatch):
    """Nor is one looked for, which a remote file system takes long for."""
    monkeypatch.setattr(tf.train, "get_checkpoint_state", None)
    output = checkpoint_files.path_of(form, tmp_path / "new", "average")
    swa_tf.average_checkpoints(three(form), output)
    assert not (tmp_path / "new" / "checkpoint").exists()


def test_a_dry_run_writes_none(inputs, tmp_path):
    swa_tf.average_checkpoints(inputs, tmp_path / "average", dry_run=True)
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("is_moved", [False, True])
def test_an_interrupt_of_its_replacement(
    is_moved, inputs, tmp_path, monkeypatch
):
    folder = tmp_path / "averages"
    swa_tf.average_checkpoints(inputs, folder / "a")
    before = contents(folder)
    rename = tf.io.gfile.rename

    def interrupted(source, target, overwrite):
        is_last = os.path.basename(target) == "checkpoint"
        if is_moved or not is_last:
            rename(source, target, overwrite)
        if is_last:
            raise KeyboardInterrupt

    monkeypatch.setattr(tf.io.gfile, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        swa_tf.average_checkpoints(inputs, folder / "b")
    if not is_moved:
        assert contents(folder) == before
        return
    assert tf.train.latest_checkpoint(str(folder)) == str(folder / "b")
    assert read_one(folder / "b") == 1.5


def test_only_the_file_named_may_be_replaced(tmp_path):
    (tmp_path / "new").mkdir()
    for name in ("x", "y", "new/x", "new/y"):
        (tmp_path / name).write_text(name)
    files = [tmp_path / "new" / "x", tmp_path / "new" / "y"]
    with pytest.raises(FileExistsError, match="x' exists"):
        atomic_files.move(files, str(tmp_path), replaces="y")
    assert (tmp_path / "y").read_text() == "y"
