"""The command line: what it prints, and the exit status."""

import importlib.metadata
import io
import os
import pathlib
import re
import shlex
import sys

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from swa_tf import average_checkpoints_main
from swa_tf.support import progress
from tests import programs
from tests.checkpoint_files import KERAS
from tests.command import (
    assert_fails,
    files_here,
    metrics_module,
    read_weight,
    write_snapshots,
    write_weight,
)


def test_dry_run_shows_what_becomes_of_each_tensor(tmp_path, command):
    values = {
        "beta1_power": np.float32(0.9),
        "net/w[b]": np.float32([[1, 2]]),
        "net/w[b]/Adam": np.float32([[0, 0]]),
        "scale": np.float16(1),
        "lr": np.float32(1),
    }
    path = str(tmp_path / "ckpt")
    tf.raw_ops.SaveV2(
        prefix=path,
        tensor_names=list(values),
        shape_and_slices=[""] * len(values),
        tensors=list(values.values()),
    )
    output = f"--output_path={tmp_path / 'x'}"
    ran = command(
        path, output, "--dry_run", "--optimizer_slots=drop", "--from_newest=sc"
    )
    assert ran.status == 0
    assert ran.err.startswith("warning: 'x' does not average")
    assert ran.err.endswith("'lr'.\n")
    assert ran.rows[1:] == [
        ["net/w[b]", "[1, 2]", "float32", "all"],
        ["beta1_power", "[]", "float32", "the newest"],
        ["lr", "[]", "float32", "the newest"],
        ["scale", "[]", "float16", "the newest"],
        ["net/w[b]/Adam", "[1, 2]", "float32", "none: dropped"],
    ]


# What is shown.


@pytest.mark.parametrize("name", ["a[bold]b[/]", "lr:smile:", "[red", "é ü"])
def test_names_are_shown_as_they_are(name, run, command):
    path = write_weight(f"{name}/{'x' * 200}", 1)
    for i, way in enumerate([[], ["--window=1"], ["--dry_run"]]):
        output = f"{name}{i}{'y' * 200}"
        ran = command(path, f"--output_path={output}", *way)
        assert (ran.status, ran.err) == (0, "")
        if way == ["--window=1"]:
            shown = f"{output}/{'x' * 200}"
            assert ran.out == f"{shown}\nwritten: {output}\n"
        else:
            assert ran.rows[0] == [f"{path}, the newest", "1"]
        if not way:
            assert ran.out.endswith(f"\nwritten: {output}\n")
    assert_fails(command(path, f"--output_path={output}.h5"), f"'{output}.h5'")


class _Output(io.TextIOWrapper):
    """Standard output that goes to a file, by its path or number."""

    def __init__(self, path, encoding="utf-8"):
        file = io.FileIO(path, "w")
        # Written through, as by `python -u`.
        super().__init__(file, encoding=encoding, write_through=True)


@pytest.mark.parametrize("path", ["/dev/full", "pipe", None])
def test_the_status_is_that_of_the_output(path, run, command, monkeypatch):
    """0 where it is there, even if the report of it cannot be printed."""
    if path == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
        output = _Output(writer)
    else:
        output = path and _Output(path)
    monkeypatch.setattr(sys, "stdout", output)
    ran = command("--checkpoint_dir=run", "--output_path=x")
    assert ran.status == 0
    assert read_weight("x") == np.float32(13 / 3)
    assert ("No space left" in ran.err) == (path == "/dev/full")
    assert ran.err.count("\n") == (path == "/dev/full")
    if output:
        output.close()  # as at Python's end: it does not fail again
    monkeypatch.setattr(sys, "stdout", None)
    assert command("--checkpoint_dir=run", "--output_path=x").status == 1


def test_a_closed_standard_error(run, command, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    given = ("--checkpoint_dir=run", "--output_path=x")
    assert [command(*given).status for _ in range(2)] == [0, 1]


def test_characters_that_the_terminal_has_not(run, command, monkeypatch):
    output = _Output("shown", "ascii")
    monkeypatch.setattr(sys, "stdout", output)
    assert command("--checkpoint_dir=run", "--output_path=ü").status == 0
    output.close()
    shown = pathlib.Path("shown").read_text("ascii")
    assert shown.endswith("written: \\xfc\n")
    assert read_weight("ü") == np.float32(13 / 3)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("way", [[], ["--window=2"]])
def test_a_bar_for_large_ones(terminal, large, way, run, command, monkeypatch):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    else:
        for name in ("TTY_COMPATIBLE", "FORCE_COLOR"):
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(progress, "_SECONDS", 0.0 if large else 1000.0)
    ran = command("--checkpoint_dir=run", "--output_path=x", *way)
    assert ran.status == 0
    assert ("averaging" in ran.err) == (terminal and large)
    assert "averaging" not in ran.out
    if not terminal:
        assert ran.err == ""
        assert "\x1b" not in ran.out


# The program.


def _declared():
    (script,) = importlib.metadata.distribution("swa-tf").entry_points
    return script


def test_the_console_script_is_declared():
    script = _declared()
    assert script.group == "console_scripts"
    assert script.name == "swa-average-checkpoints"
    assert script.load() is average_checkpoints_main.run


def _examples():
    text = average_checkpoints_main.__doc__.replace("\\\n", "")
    commands = re.findall("^    (swa-average-checkpoints .*)$", text, re.M)
    return [shlex.split(command)[1:] for command in commands]


@pytest.mark.parametrize("arguments", _examples(), ids=" ".join)
def test_the_examples_of_the_help(arguments, run, command):
    for number in (3, 4):
        write_weight(f"run/ckpt-{number}", number)
    for name in "abc":
        write_weight(name, 1)
        write_weight(name, 1, KERAS)
    os.unlink("c.index")
    os.unlink("c.data-00000-of-00001")
    write_snapshots()
    with metrics_module("accuracy = weight\n"):
        before = files_here()
        ran = command(*arguments)
        assert (ran.status, ran.err) == (0, "")
        after = [p for p in files_here() if "__pycache__" not in p]
        assert (after == before) == ("--dry_run" in arguments)


def test_there_are_examples_of_all_ways():
    given = {a.split("=")[0] for arguments in _examples() for a in arguments}
    ways = {"weights", "decay", "window", "soup_metric", "dry_run"}
    ways.add("relative_width")
    assert {f"--{way}" for way in ways} <= given


def _program(*arguments, console_script=False):
    """Runs the command line in a process of its own."""
    if not console_script:
        module = "swa_tf.average_checkpoints_main"
        return programs.run_module(module, *arguments, cwd=os.getcwd())
    module, function = _declared().value.split(":")
    # As the file that pip writes.
    code = (
        "import sys; sys.argv[0] = 'bin/swa-average-checkpoints'; "
        f"from {module} import {function}; sys.exit({function}())"
    )
    return programs.run_code(code, *arguments, cwd=os.getcwd())


@pytest.mark.slow
@pytest.mark.parametrize("console_script", [False, True])
def test_the_help_of_the_program(console_script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = _program("--help", console_script=console_script)
    shown = " ".join(ran.stdout.split())
    assert "Averages the weights in checkpoints, and writes a" in shown
    example = "swa-average-checkpoints --checkpoint_dir=run --decay=0.9"
    assert example in shown
    module = average_checkpoints_main.__name__
    for flag in flags.FLAGS.get_key_flags_for_module(module):
        name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
        assert f"{name}:" in shown
        assert " ".join(flag.help.split()) in shown
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("console_script", [False, True])
def test_the_exit_status_of_the_program(console_script, run):
    given = ("--checkpoint_dir=run", "--output_path=x")
    ran = _program(*given, console_script=console_script)
    assert ran.returncode == 0
    assert ran.stdout.endswith("written: x\n")
    assert read_weight("x") == np.float32(13 / 3)
    again = _program(*given, console_script=console_script)
    assert again.returncode == 1
    assert "Traceback" not in again.stderr
    last = again.stderr.splitlines()[-1]
    assert last.startswith(
        "error: --output_path must not exist. Received: --output_path="
    )
    assert again.stdout == ""
