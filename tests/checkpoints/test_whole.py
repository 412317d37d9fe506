"""Full disks, interrupts and kills: an average is whole or absent."""

import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time
import zipfile

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import atomic_files
from tests import checkpoint_files, damage, programs
from tests.checkpoint_files import (
    FORMS,
    H5,
    KERAS,
    NAME,
    OBJECT,
    WEIGHTS,
    command_line,
    contents,
)
from tests.fitting import exhaustive

# Disks that are full, and folders that cannot be written to.


@pytest.mark.parametrize("slots", ["keep", "drop"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("form", FORMS)
def test_no_space_left(form, part, slots, three, tmp_path, capsys):
    paths = three(form)
    before = contents(tmp_path)
    output = checkpoint_files.path_of(form, tmp_path / "new" / "x", "average")
    sizes = map(os.path.getsize, checkpoint_files.files(form, paths[2]))
    limit = int(part * max(sizes) * (1 if slots == "keep" else 0.5))
    with damage.disk_full_after(limit):
        with pytest.raises(OSError, match=f"large: '{output}'"):
            swa_tf.average_checkpoints(paths, output, optimizer_slots=slots)
        assert contents(tmp_path) == before
        status = command_line(
            f"--output_path={output}", f"--optimizer_slots={slots}", *paths
        )
    assert status == 1
    assert contents(tmp_path) == before
    said = capsys.readouterr().err.lstrip()
    assert said.startswith("error: ")
    assert "".join(output.split()) in "".join(said.split())  # lines are folded


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_that_cannot_be_written_to(
    form, three, tmp_path, monkeypatch, capsys
):
    paths = three(form)
    locked = tmp_path / "locked"
    locked.mkdir()
    (tmp_path / "file").write_text("")
    before = contents(tmp_path)
    make = os.mkdir

    def mkdir(path, *args, **kwargs):  # root may write to all folders
        if os.fspath(path).startswith(os.fspath(locked)):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        make(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", mkdir)
    for folder in (locked, locked / "new", tmp_path / "file" / "x", "/proc/x"):
        output = checkpoint_files.path_of(form, folder, "average")
        with pytest.raises(
            (OSError, ValueError), match=r"denied|directory|`output`"
        ):
            swa_tf.average_checkpoints(paths, output)
        assert command_line(f"--output_path={output}", *paths) == 1
        assert capsys.readouterr().err.lstrip().startswith("error: ")
        assert contents(tmp_path) == before


# Interrupts at each moment at which files are made, moved and removed.


def interrupted_at(number, block):
    """Runs `block`; KeyboardInterrupt at one call that `_files` makes.

    As Python does: when a function begins, or one in C has returned.

    Returns:
        Whether it came to that.
    """
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        if event not in ("call", "c_return") or not within(frame):
            return
        count += 1
        if count == number:
            sys.setprofile(None)
            raise KeyboardInterrupt

    def within(frame):
        for _ in range(3):
            if frame and frame.f_code.co_filename == atomic_files.__file__:
                return True
            frame = frame and frame.f_back
        return False

    sys.setprofile(profile)
    try:
        block()
    except (KeyboardInterrupt, OSError):  # `rmtree` makes one of the other
        return True
    finally:
        sys.setprofile(None)
    return False


def test_an_interrupt_at_each_moment_of_making_and_moving(tmp_path):
    output = tmp_path / "new" / "folder" / "x"
    names = ["x.json", "x.data", "x.index"]

    def write():
        with atomic_files.scratch_folder(output) as scratch:
            for name in names:
                (scratch / name).write_text(name)
            files = [scratch / name for name in names]
            atomic_files.move(files, str(output.parent))

    for number in range(1, 9999):
        interrupted = interrupted_at(number, write)
        left = sorted(path.name for path in tmp_path.rglob("*"))
        assert left in ([], sorted([*names, "new", "folder"])), number
        if not interrupted:
            break
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
    assert left
    assert number > 20


@pytest.mark.slow
@pytest.mark.parametrize("form", [OBJECT, KERAS])
def test_an_interrupt_at_each_moment(form, three, tmp_path):
    paths = three(form)
    folder = tmp_path / "new"
    output = checkpoint_files.path_of(form, folder, "average")

    def average():
        swa_tf.average_checkpoints(paths, output)

    average()
    whole = {path.name for path in folder.iterdir()}
    shutil.rmtree(folder)
    before = contents(tmp_path)
    for number in range(1, 9999):
        interrupted = interrupted_at(number, average)
        left = (
            {path.name for path in folder.iterdir()}
            if (folder.exists())
            else set()
        )
        assert left in (set(), whole), number
        if left:
            tf.train.load_checkpoint(output) if form == OBJECT else (
                zipfile.ZipFile(output).testzip()
            )
            shutil.rmtree(folder)
        assert contents(tmp_path) == before, number
        if not interrupted:
            break
    assert number > 20


@pytest.mark.parametrize("fails", range(4))
def test_files_are_moved_in_order_and_all_or_none(fails, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    names = ["x.json", "x.data", "x.index"]
    files = [tmp_path / "scratch" / name for name in names]
    for file in files:
        file.write_text(file.name)
    (tmp_path / "other").write_text("other")
    rename, moved = tf.io.gfile.rename, []

    def renamed(source, target, overwrite):
        if len(moved) == fails:
            raise KeyboardInterrupt
        rename(source, target, overwrite)
        moved.append(os.path.basename(target))

    monkeypatch.setattr(tf.io.gfile, "rename", renamed)
    if fails == len(names):
        atomic_files.move(files, str(tmp_path))
    else:
        with pytest.raises(KeyboardInterrupt):
            atomic_files.move(files, str(tmp_path))
    assert moved == names[:fails]
    left = {path.name for path in tmp_path.iterdir()} - {"scratch", "other"}
    assert left == (set(names) if fails == len(names) else set())


@pytest.mark.parametrize("form", FORMS)
def test_what_counts_is_moved_last(form, three, tmp_path, monkeypatch):
    rename, moved = tf.io.gfile.rename, []

    def renamed(source, target, overwrite):
        if pathlib.Path(target).parent == tmp_path:
            moved.append(os.path.basename(target))
        rename(source, target, overwrite)

    monkeypatch.setattr(tf.io.gfile, "rename", renamed)
    output = checkpoint_files.path_of(form, tmp_path, "average")
    swa_tf.average_checkpoints(three(form), output)
    names = [
        os.path.basename(file) for file in checkpoint_files.files(form, output)
    ]
    if form in (OBJECT, NAME):
        names.append("checkpoint")  # of what is there by then
    assert moved == [f"{os.path.basename(output)}.json", *names]


# Real processes, really killed.

MAIN = """
import os, sys
from absl import flags
from swa_tf import average_checkpoints_main

status = 9
try:
    argv = flags.FLAGS(["average", *sys.argv[1:]])
    status = average_checkpoints_main.main(argv)
except SystemExit as exit:
    status = exit.code
except KeyboardInterrupt:
    status = 130
finally:
    os._exit(status)  # at once: what Python does at its end takes longer
"""


def run_and_signal(arguments, number, delay):
    """Runs the command line, and sends it a signal after so many seconds."""
    began = time.monotonic()
    program = programs.Program(arguments, code=MAIN)
    if number is not None:
        time.sleep(delay)
        os.kill(program.pid, number)
    return program.wait().returncode, time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [OBJECT, exhaustive(NAME), exhaustive(WEIGHTS), KERAS, exhaustive(H5)],
)
def test_killed_at_random_moments(form, tmp_path):
    rng = np.random.default_rng(0)
    values = [
        {f"w{i}": rng.normal(size=(1 << 17,)).astype("f4") for i in range(8)}
        for _ in range(3)
    ]
    mean = {
        key: np.mean([np.float64(v[key]) for v in values], axis=0)
        for key in values[0]
    }
    paths = [checkpoint_files.path_of(form, tmp_path, f"{i}") for i in range(3)]
    for path, value in zip(paths, values):
        checkpoint_files.write(form, path, value)
    before = contents(tmp_path)
    number = 0

    def outcome(sent, delay):
        """Runs one, and returns whether the output is there."""
        nonlocal number
        number += 1
        folder = tmp_path / f"new{number}"
        output = checkpoint_files.path_of(form, folder, "average")
        status, seconds = run_and_signal(
            [f"--output_path={output}", *paths], sent, delay
        )
        left = [p.name for p in folder.iterdir()] if folder.exists() else []
        *_, counts = checkpoint_files.files(form, output)
        whole = os.path.exists(counts)
        if whole:
            average = checkpoint_files.read(form, output, values[0])
            for key, value in mean.items():
                # Rounded once to float32: half a unit in the last place.
                np.testing.assert_allclose(average[key], value, rtol=2**-24)
            report = json.loads(pathlib.Path(f"{output}.json").read_text())
            assert len(report["averaged"]) == 8
        elif form in (OBJECT, NAME):
            with pytest.raises((tf.errors.OpError, ValueError)):
                tf.train.load_checkpoint(output)
        if status == 0:
            assert whole
        if sent in (None, signal.SIGTERM, signal.SIGINT):
            files = checkpoint_files.files(form, output)
            names = [*map(os.path.basename, files)]
            names.append(f"{os.path.basename(output)}.json")
            if form in (OBJECT, NAME):
                names.append("checkpoint")  # for `tf.train.latest_checkpoint`
            assert sorted(left) == (sorted(names) if whole else [])
            assert whole or not folder.exists()
        shutil.rmtree(folder, ignore_errors=True)
        assert contents(tmp_path) == before
        tf.keras.backend.clear_session()
        return whole, seconds

    whole, _ = outcome(None, 0)
    assert whole
    _, seconds = outcome(None, 0)  # without what is done once
    moments = random.Random(0)
    for sent, times in (
        (signal.SIGKILL, 20),
        (signal.SIGTERM, 5),
        (signal.SIGINT, 5),
    ):
        found = [
            outcome(sent, (i + moments.random()) / times * seconds * 1.05)[0]
            for i in range(times)
        ]
        assert not found[0]
