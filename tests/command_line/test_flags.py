"""The command line: its flags, and what they do."""

import os
import pathlib
import re
import signal

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

import swa_tf
from tests import checkpoint_files
from tests.checkpoint_files import FORMS, KERAS, NAME, OBJECT
from tests.command import (
    assert_fails,
    files_here,
    metrics_module,
    read_weight,
    write_snapshots,
    write_weight,
)

# Which checkpoints.


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ([], [1, 2, 10]),
        (["--num_last_checkpoints=2"], [2, 10]),
        (["--num_last_checkpoints", "1"], [10]),
        (["--every=2"], [1, 10]),
        (["--every=2", "--num_last_checkpoints=1"], [10]),
        (["--until=9"], [1, 2]),
        (["--until=9", "--num_last_checkpoints=1"], [2]),
    ],
)
def test_a_directory(arguments, numbers, run, command):
    ran = command("--checkpoint_dir=run", "--output_path=new/x", *arguments)
    assert (ran.status, ran.err) == (0, "")
    share = f"{1 / len(numbers):.4g}"
    rows = [[f"run/ckpt-{number}", share] for number in numbers]
    rows[-1][0] += ", the newest"
    assert ran.rows == rows
    assert ran.out.endswith("\nwritten: new/x\n")
    assert "TensorFlow checkpoint: 1 numbers in 1 tensors averaged" in ran.out
    # Of the newest: the object graph.
    assert "of the newest, 1 other tensors; 0 dropped" in ran.out
    assert read_weight("new/x") == np.float32(sum(numbers) / len(numbers))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--checkpoints=run/ckpt-1,run/ckpt-2,run/ckpt-10"],
        ["run/ckpt-1", "run/ckpt-2", "run/ckpt-10"],
        ["--checkpoints=run/ckpt-1", "run/ckpt-2", "run/ckpt-10"],
        ["run/ckpt-1.index", "run/ckpt-2.index", "run/ckpt-10.index"],
        ["--checkpoints=run/ckpt-*"],
        ["run/ckpt-*"],
        ["run/ckpt-?.index", "run/ckpt-??.index"],
        ["run/ckpt-[12]", "run/ckpt-[12].*", "run/ckpt-10"],
    ],
)
def test_a_list(arguments, run, command):
    if arguments[0] == "run/ckpt-[12]":
        # What is there under such a name is meant, and else it is a pattern.
        write_weight("run/ckpt-[12]", 64)
        arguments = arguments[:1]
        ran = command("--output_path=x", *arguments)
        assert ran.rows == [["run/ckpt-[12], the newest", "1"]]
        return
    ran = command("--output_path=x", "--decay=0.5", *arguments)
    # 1 -> 1.5 -> 5.75: the order counts
    assert (ran.status, read_weight("x")) == (0, 5.75)
    assert ran.rows == [
        ["run/ckpt-1", "0.25"],
        ["run/ckpt-2", "0.25"],
        ["run/ckpt-10, the newest", "0.5"],
    ]


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("run/ckpt-1?", [10]),
        ("run/ckpt-?", [1, 2]),
        ("run/ckpt-[12]", [1, 2]),
        ("run/ckpt-*", [1, 2, 10]),
        ("run/*.index", [1, 2, 10]),
    ],
)
def test_a_pattern_matches_prefixes(pattern, numbers, run, command):
    ran = command(f"--checkpoints={pattern}", "--output_path=x")
    assert (ran.status, ran.err) == (0, "")
    assert len(ran.rows) == len(numbers)
    assert read_weight("x") == np.float32(np.mean(numbers))


def test_a_pattern_is_in_the_order_of_the_run(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    for time, name in enumerate(["b", "c", "a"]):
        path = write_weight(name, time, KERAS)
        os.utime(path, (time, time))
    ran = command("--output_path=x.keras", "*.keras")
    assert [row[0] for row in ran.rows] == [
        "b.keras",
        "c.keras",
        "a.keras, the newest",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Either --checkpoint_dir or --checkpoints must be given. "
         "Received: neither"),
        (["--checkpoint_dir=run", "--checkpoints=run/ckpt-1"],
         "Received: both"),
        (["--checkpoint_dir=run", "run/ckpt-1"], "Received: both"),
        (["run/ckpt-1", "--num_last_checkpoints=1"],
         "choose from --checkpoint_dir"),
        (["run/ckpt-1", "--every=2"], "choose from --checkpoint_dir"),
        (["run/ckpt-1", "--until=2"], "choose from --checkpoint_dir"),
        (["--checkpoint_dir=run", "--num_last_checkpoints=4"],
         "--num_last_checkpoints must be at most 3"),
        (["--checkpoint_dir=runs"], "Received: --checkpoint_dir='runs'"),
        (["--checkpoint_dir=."], "no checkpoint"),
        (["run/ckpt-3"], "'run/ckpt-3'"),
        (["run/none-*"], "'run/none-*'"),
        (["run/ckpt-1", "run/ckpt-1"], "Received twice: 'run/ckpt-1'"),
        (["run/ckpt-*", "run/ckpt-2"], "Received twice: 'run/ckpt-2'"),
        (["run"], "the directory 'run' in a list"),
        (["run/", "--output_path=x.keras"], "--checkpoint_dir"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dry_run", [True, False])
def test_what_checkpoints_cannot_be(arguments, message, dry_run, run, command):
    before = files_here()
    if dry_run:
        arguments = [*arguments, "--dry_run"]
    if arguments[:2] == ["run/ckpt-*", "run/ckpt-2"]:
        message = "once"
    assert_fails(command("--output_path=x", *arguments), message)
    assert files_here() == before


# How they are averaged.


def test_weights(run, command):
    ran = command("--output_path=x", "--weights=10,5", *run[:2])
    # (10 * 1 + 5 * 2) / 15
    assert (ran.status, read_weight("x")) == (0, np.float32(4 / 3))
    assert ran.rows == [
        ["run/ckpt-1", "0.6667"],
        ["run/ckpt-2, the newest", "0.3333"],
    ]


def test_another_length(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_snapshots()
    given = ["--relative_width=0.07", "snapshots/0.05/*", "snapshots/0.1/*"]
    ran = command("--output_path=x", *given)
    assert (ran.status, ran.err) == (0, "")
    # By hand, with gamma of the width 0.07.
    t = 7.0
    for _ in range(99):  # (t + 2)^2 (t + 3) * 0.07^2 = t + 1
        t = ((t + 1) / 0.07**2 / (t + 3)) ** 0.5 - 2
    shares = np.diff((np.arange(81) / 80) ** (t + 1))
    expected = shares @ np.arange(1, 81)
    assert read_weight("x") == pytest.approx(expected, rel=1e-3)
    assert "the profile of relative width 0.07 is described up to 1." in ran.out
    shown = {name: float(share) for name, share in ran.rows}
    assert sum(shown.values()) == pytest.approx(1.0, abs=1e-3)
    assert min(shown.values()) < 0.0


WAYS = (
    "--weights=1,2,3",
    "--decay=0.5",
    "--window=2",
    "--soup_metric=m:f",
    "--relative_width=0.1",
)


@pytest.mark.parametrize(
    ("first", "second"),
    [(a, b) for i, a in enumerate(WAYS) for b in WAYS[i + 1 :]],
)
def test_one_way_at_a_time(first, second, run, command):
    before = files_here()
    with pytest.raises(flags.IllegalFlagValueError, match="At most one of"):
        command("--checkpoint_dir=run", "--output_path=x", second, first)
    assert files_here() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights=1,2"], "--weights must be a list of 3 numbers"),
        (["--weights=1,2,x"], "--weights must be numbers. Received: could not"),
        (["--weights=1,2,"], "--weights must be numbers."),
        (["--weights="], "--weights must be a list of 3 numbers"),
        (["--weights=1,2,nan"], "--weights[2]=nan"),
        (["--weights=1,2,-3"], "weights[2]=-3.0"),
        (["--decay=1"], "--decay must be in [0, 1). Received: --decay=1.0"),
        (["--window=4"], "--window must be at most 3, the number of"),
        (["--until=0"], "--until must be at least 1, the lowest number"),
        (["--relative_width=1"], "--relative_width must be a number from"),
        (["--relative_width=0.1"], "--checkpoint_dir must be checkpoints wr"),
        (
            ["--relative_width=0.1", "--snapshot_widths=1,2,3"],
            "given together. Received: no --snapshot_n_models",
        ),
        (
            ["--relative_width=0.1", "--snapshot_n_models=1,2,3"],
            "given together. Received: no --snapshot_widths",
        ),
        (["--snapshot_widths=1,2,3"], "belong to --relative_width"),
        (["--snapshot_n_models=1,2,3"], "belong to --relative_width"),
        (["--from_newest=("], "'('"),
        (["--from_newest=none"], "'none', which matches none"),
        (["--output_path=x.keras"], "a name without suffix"),
        (["--output_path=run/ckpt-1"], "must not exist"),
        (["--output_path=run", "--window=1"], "must not exist"),
        (["--output_path=there"], "'there'"),
        (["--output_path=there/x"], "there"),
        (["--output_path="], "--output_path must be given. See --help."),
        (["--soup_metric=metrics"], "Received: metrics: No module named"),
        (["--soup_metric=math"], "math: it is no function"),
        (["--soup_metric="], "must be module:function. Received: : "),
        (["--soup_metric=nosuch.module:f"], "No module named 'nosuch'"),
        (["--soup_metric=math:nosuch"], "has no attribute 'nosuch'"),
        (["--soup_metric=math:pi"], "math:pi: it is no function"),
        (["--soup_metric=math:"], "it is no function"),
        (["--soup_metric=a b:c"], "must be module:function. Received: a b:c"),
        (["--soup_metric=mode=x"], "Received: mode=x: "),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_what_is_wrong_is_said_and_nothing_written(
    arguments, message, dry_run, run, command
):
    pathlib.Path("there").touch()
    before = files_here()
    if dry_run:
        arguments = [*arguments, "--dry_run"]
    given = ["--checkpoint_dir=run", "--output_path=new/x", *arguments]
    assert_fails(command(*given), message)
    assert files_here() == before


def test_no_output_path(run, command):
    assert_fails(command(*run), "--output_path must be given")


@pytest.mark.parametrize(
    "argument",
    [
        "--window=0",
        "--every=0",
        "--num_last_checkpoints=0",
        "--num_last_checkpoints=two",
        "--decay=high",
        "--until=-1",
        "--relative_width=high",
        "--soup_mode=best",
        "--optimizer_slots=discard",
    ],
)
def test_values_that_flags_refuse(argument, command):
    with pytest.raises(flags.IllegalFlagValueError, match=argument[2:8]):
        command(argument)


def test_patterns_for_the_newest(run, command):
    for i in (1, 2):
        values = {name: np.float32(i) for name in ("a", "b", "c")}
        checkpoint_files.write(OBJECT, f"several-{i}", values)
    ran = command(
        "--output_path=x",
        "--from_newest=^a$",
        "--from_newest=b|,",
        "several-1",
        "several-2",
    )
    assert "1 numbers in 1 tensors averaged; of the newest, 3 other" in ran.out
    got = checkpoint_files.read(OBJECT, "x", values)
    assert got == {"a": 2, "b": 2, "c": 1.5}


@pytest.mark.parametrize("form", FORMS)
def test_slots_and_batch_norm(form, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    paths = [checkpoint_files.path_of(form, "", f"ckpt-{i}") for i in (1, 2)]
    for i, path in enumerate(paths):
        tf.keras.backend.clear_session()  # the same names in each
        checkpoint_files.write_trained(form, path, seed=i)
    for slots in ("keep", "drop"):
        output = checkpoint_files.path_of(form, "", slots)
        given = (
            *paths,
            f"--output_path={output}",
            f"--optimizer_slots={slots}",
        )
        ran = command(*given, "--dry_run")
        again = command(*given)
        assert (ran.status, again.status) == (0, 0)
        shown = again.out[: -len(f"written: {output}\n")]
        assert ran.out.startswith(f"{shown}┏")  # and what becomes of each
        dropped = int(re.search(r"; (\d+) dropped\n", ran.out).group(1))
        assert (dropped > 0) == (slots == "drop")
        said = f"warning: '{output}' holds averages of batch-norm statistics"
        for each in (ran, again):
            assert each.err.startswith(said) == (form != NAME)
            assert ("swa_tf.refit_batch_norm(model, dataset)" in each.err) == (
                form != NAME
            )


def test_window(run, command):
    ran = command("--checkpoint_dir=run", "--output_path=means", "--window=2")
    paths = ["means/ckpt-2", "means/ckpt-10"]
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines() == [*paths, "written: means"]
    assert [read_weight(path) for path in paths] == [1.5, 6]


# A dry run.


def test_dry_run(run, command):
    before = files_here()
    for arguments, rows in [
        (
            [],
            [("ckpt-1", "0.3333"), ("ckpt-2", "0.3333"), ("ckpt-10", "0.3333")],
        ),
        (
            ["--decay=0.75"],
            [("ckpt-1", "0.5625"), ("ckpt-2", "0.1875"), ("ckpt-10", "0.25")],
        ),
        (
            ["--weights=1,1,2"],
            [("ckpt-1", "0.25"), ("ckpt-2", "0.25"), ("ckpt-10", "0.5")],
        ),
        (["--window=2"], [("ckpt-2", "0.5"), ("ckpt-10", "0.5")]),
        (["--window=3"], [(f"ckpt-{n}", "0.3333") for n in (1, 2, 10)]),
    ]:
        ran = command(
            "--checkpoint_dir=run",
            "--output_path=new/x",
            "--dry_run",
            *arguments,
        )
        assert (ran.status, ran.err) == (0, "")
        rows = [[f"run/{name}", share] for name, share in rows]
        rows[-1][0] += ", the newest"
        assert ran.rows[: len(rows)] == rows
        assert ran.out.endswith("This was a dry run: nothing is written.\n")
        assert "written:" not in ran.out
        assert files_here() == before


def test_warnings_of_windows(run, command):
    for i in (1, 2):
        checkpoint_files.write(
            OBJECT,
            f"b-{i}",
            {"w": np.float32([i]), "epoch": np.float32(i)},
        )
    ran = command("b-1", "b-2", "--output_path=means", "--window=2")
    assert ran.status == 0
    assert ran.err.startswith("warning: 'b-2' does not average")
    assert ran.err.endswith("'epoch'.\n")


def test_dry_run_of_windows_checks_all_of_them(run, command):
    checkpoint_files.write(OBJECT, "other", {"v": np.float32(1)})
    write_weight("again/ckpt-10", 3)
    pathlib.Path("there").mkdir()
    before = files_here()
    for given, message in [
        (["--output_path=x", "other", *run], "same tensors"),
        (["--output_path=x", *run, "again/ckpt-10"], "different names"),
        (["--output_path=there", *run], "must not exist"),
    ]:
        for dry_run in (["--dry_run"], []):
            assert_fails(command("--window=2", *given, *dry_run), message)
    assert files_here() == before


@pytest.mark.parametrize(
    ("mode", "added"), [([], ["10"]), (["--soup_mode=min"], ["2", "1"])]
)
def test_soup(mode, added, run, command):
    code = (
        "class Of:\n    def three(path):\n        return weight(path) % 2.5\n"
    )
    with metrics_module(code):
        # Alone 1, 2 and 0. At most: 10 has 0; 2 has 2, the best, 1.5 with 1.
        ran = command(
            "--checkpoint_dir=run",
            "--output_path=x",
            "--soup_metric=my_metrics:Of.three",
            *mode,
        )
    assert (ran.status, ran.err) == (0, "")
    tables = ran.out.split("TensorFlow checkpoint:")[0]
    assert "verdict" in tables
    verdicts = {row[1]: row[4] for row in ran.rows if len(row) == 5}
    expected = swa_tf.greedy_soup(
        "run",
        "y",
        lambda path: read_weight(path) % 2.5,
        mode="min" if mode else "max",
    )
    assert list(verdicts) == [trial.path for trial in expected.trials]
    assert {p for p, v in verdicts.items() if v == "added"} == set(
        expected.paths
    )
    shown = [row[0] for row in ran.rows if len(row) == 2]
    assert [path.split(",")[0] for path in shown] == expected.paths
    assert read_weight("x") == read_weight("y")
    assert ran.out.endswith("written: x\n")


def test_a_dry_run_evaluates_nothing(run, command):
    with metrics_module("def fails(path):\n    raise AssertionError\n"):
        before = files_here()
        ran = command(
            "--checkpoint_dir=run",
            "--output_path=x",
            "--soup_metric=my_metrics:fails",
            "--dry_run",
        )
        assert ran.status == 0
        assert [p for p in files_here() if "__pycache__" not in p] == before


def test_a_metric_that_is_no_number(run, command):
    with metrics_module("def none(path):\n    pass\n"):
        ran = command(
            "--checkpoint_dir=run",
            "--output_path=x",
            "--soup_metric=my_metrics:none",
        )
    assert_fails(ran, "must return a number. Received: None for 'run/ckpt-1'")


def test_an_error_in_a_metric_says_where(run, command):
    with metrics_module("def broken(path):\n    return int(path)\n"):
        before = files_here()
        ran = command(
            "--checkpoint_dir=run",
            "--output_path=new/x",
            "--soup_metric=my_metrics:broken",
        )
        assert [p for p in files_here() if "__pycache__" not in p] == before
    assert ran.status == 1
    assert "my_metrics.py" in ran.err
    assert "return int(path)" in ran.err
    assert ran.err.splitlines()[-1].startswith("error: invalid literal for int")


@pytest.mark.parametrize(
    "said",
    [
        "Layer `inputs` got `window`[1]. Received: decay=0.1",
        "`v` must be 1. Received: v=2",
        "`help` must be 1. Received: inputs=2",
    ],
)
def test_an_error_in_a_metric_is_shown_as_it_is(said, run, command):
    code = f"def broken(path):\n    raise ValueError({said!r})\n"
    with metrics_module(code):
        ran = command(
            "--checkpoint_dir=run",
            "--output_path=new/x",
            "--soup_metric=my_metrics:broken",
        )
    assert ran.err.splitlines()[-1] == f"error: {said}"


def test_names_of_arguments_in_paths_stay(run, command):
    write_weight("`decay`=1, Received: decay=2/ckpt-1", 1)
    ran = command("`decay`=1, Received: decay=2", "--output_path=x")
    assert_fails(ran, "error: --checkpoints must be a list of checkpoints")
    assert ran.err.endswith("'`decay`=1, Received: decay=2' in a list\n")


def test_termination_leaves_nothing(run, command):
    code = (
        "calls = []\n"
        "def terminated(path):\n"
        "    calls.append(path)\n"
        "    if len(calls) == 4:\n"
        "        assert os.path.dirname(path).startswith('new/.x-')\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return len(calls)\n"
    )
    with metrics_module(code):
        before = files_here()
        with pytest.raises(SystemExit) as ended:
            command(
                "--checkpoint_dir=run",
                "--output_path=new/x",
                "--soup_metric=my_metrics:terminated",
            )
        assert ended.value.code == 128 + signal.SIGTERM
        assert [p for p in files_here() if "__pycache__" not in p] == before
