"""The command line: flags, what it prints, the exit status."""

import ast
import contextlib
import io
import os
import pathlib
import re
import shlex
import shutil
import signal
import sys

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

import swa_tf
from swa_tf import average_checkpoints_main
from tests import checkpoint_files, programs
from tests.checkpoint_files import FORMS, KERAS, NAME, OBJECT

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIKE = {"w": np.float32(0)}


def _write(name, value, form=OBJECT):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    path = name + checkpoint_files.suffix(form)
    checkpoint_files.write(form, path, {"w": np.float32(value)})
    return path


def _read(path, form=OBJECT):
    return float(checkpoint_files.read(form, str(path), LIKE)["w"])


def _tree():
    """All that is below the working directory, hidden files too."""
    return sorted(map(str, pathlib.Path().rglob("*")))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    for number in (1, 2, 10):
        _write(str(folder / f"ckpt-{number}"), number)
    return folder


@pytest.fixture
def run(written, tmp_path, monkeypatch):
    """A working directory with `run/ckpt-1`, 2 and 10 of these weights."""
    shutil.copytree(written, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return [f"run/ckpt-{number}" for number in (1, 2, 10)]


class Ran:
    """The outcome of a command: `status`, `out`, `err`, and table rows."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err
        rows = [line.strip("│ ").split("│") for line in out.splitlines()]
        self.rows = [[c.strip() for c in row] for row in rows if len(row) > 1]


@pytest.fixture
def command(capsys):
    """Runs a command line in this process."""
    handler = signal.getsignal(signal.SIGTERM)

    def run_command(*arguments):
        capsys.readouterr()
        with flagsaver.flagsaver():
            given = flags.FLAGS(["swa-average-checkpoints", *arguments])
            status = average_checkpoints_main.main(given)
        return Ran(status, *capsys.readouterr())

    yield run_command
    signal.signal(signal.SIGTERM, handler)


def _fails(ran, message):
    """An error that says so, and nothing else."""
    assert ran.status == 1
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert ran.out == ""


# Which checkpoints.


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ([], [1, 2, 10]),
        (["--num_last_checkpoints=2"], [2, 10]),
        (["--num_last_checkpoints", "1"], [10]),
        (["--every=2"], [1, 10]),
        (["--every=2", "--num_last_checkpoints=1"], [10]),
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
    assert _read("new/x") == np.float32(sum(numbers) / len(numbers))


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
        _write("run/ckpt-[12]", 64)
        arguments = arguments[:1]
        ran = command("--output_path=x", *arguments)
        assert ran.rows == [["run/ckpt-[12], the newest", "1"]]
        return
    ran = command("--output_path=x", "--decay=0.5", *arguments)
    # 1 -> 1.5 -> 5.75: the order counts
    assert (ran.status, _read("x")) == (0, 5.75)
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
    assert _read("x") == np.float32(np.mean(numbers))


def test_a_pattern_is_in_the_order_of_the_run(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    for time, name in enumerate(["b", "c", "a"]):
        path = _write(name, time, KERAS)
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
        (["--checkpoint_dir=run", "--num_last_checkpoints=4"],
         "`last` must be at most 3"),
        (["--checkpoint_dir=runs"], "directory='runs'"),
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
    before = _tree()
    if dry_run:
        arguments = [*arguments, "--dry_run"]
    if arguments[:2] == ["run/ckpt-*", "run/ckpt-2"]:
        message = "once"
    _fails(command("--output_path=x", *arguments), message)
    assert _tree() == before


# How they are averaged.


def test_weights(run, command):
    ran = command("--output_path=x", "--weights=10,5", *run[:2])
    # (10 * 1 + 5 * 2) / 15
    assert (ran.status, _read("x")) == (0, np.float32(4 / 3))
    assert ran.rows == [
        ["run/ckpt-1", "0.6667"],
        ["run/ckpt-2, the newest", "0.3333"],
    ]


WAYS = ("--weights=1,2,3", "--decay=0.5", "--window=2", "--soup_metric=m:f")


@pytest.mark.parametrize(
    ("first", "second"),
    [(a, b) for i, a in enumerate(WAYS) for b in WAYS[i + 1 :]],
)
def test_one_way_at_a_time(first, second, run, command):
    before = _tree()
    with pytest.raises(flags.IllegalFlagValueError, match="At most one of"):
        command("--checkpoint_dir=run", "--output_path=x", second, first)
    assert _tree() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights=1,2"], "`weights` must be a list of 3 numbers"),
        (["--weights=1,2,x"], "--weights must be numbers. Received: could not"),
        (["--weights=1,2,"], "--weights must be numbers."),
        (["--weights="], "`weights` must be a list of 3 numbers"),
        (["--weights=1,2,nan"], "weights=nan"),
        (["--weights=1,2,-3"], "weights=-3.0"),
        (["--decay=1"], "`decay` must be in [0, 1). Received: decay=1.0"),
        (["--window=4"], "must be at most 3, the number of"),
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
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_what_is_wrong_is_said_and_nothing_written(
    arguments, message, dry_run, run, command
):
    pathlib.Path("there").touch()
    before = _tree()
    if dry_run:
        arguments = [*arguments, "--dry_run"]
    given = ["--checkpoint_dir=run", "--output_path=new/x", *arguments]
    _fails(command(*given), message)
    assert _tree() == before


def test_no_output_path(run, command):
    _fails(command(*run), "--output_path must be given")


@pytest.mark.parametrize(
    "argument",
    [
        "--window=0",
        "--every=0",
        "--num_last_checkpoints=0",
        "--num_last_checkpoints=two",
        "--decay=high",
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
    assert [_read(path) for path in paths] == [1.5, 6]


# A dry run.


def test_dry_run(run, command):
    before = _tree()
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
        assert _tree() == before


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
    _write("again/ckpt-10", 3)
    pathlib.Path("there").mkdir()
    before = _tree()
    for given, message in [
        (["--output_path=x", "other", *run], "same tensors"),
        (["--output_path=x", *run, "again/ckpt-10"], "different names"),
        (["--output_path=there", *run], "must not exist"),
    ]:
        for dry_run in (["--dry_run"], []):
            _fails(command("--window=2", *given, *dry_run), message)
    assert _tree() == before


# Soups.


@contextlib.contextmanager
def _metrics(code):
    """A module `my_metrics` in the working directory."""
    pathlib.Path("my_metrics.py").write_text(
        "import os, signal\n"
        "import numpy as np\n"
        "from tests import checkpoint_files\n\n"
        "def weight(path):\n"
        "    like = {'w': np.float32(0)}\n"
        "    read = checkpoint_files.read\n"
        "    return float(read(checkpoint_files.OBJECT, path, like)['w'])\n\n"
        + code
    )
    try:
        yield
    finally:
        sys.modules.pop("my_metrics", None)


@pytest.mark.parametrize(
    ("mode", "added"), [([], ["10"]), (["--soup_mode=min"], ["2", "1"])]
)
def test_soup(mode, added, run, command):
    code = (
        "class Of:\n    def three(path):\n        return weight(path) % 2.5\n"
    )
    with _metrics(code):
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
        lambda path: _read(path) % 2.5,
        mode="min" if mode else "max",
    )
    assert list(verdicts) == [trial.path for trial in expected.trials]
    assert {p for p, v in verdicts.items() if v == "added"} == set(
        expected.paths
    )
    shown = [row[0] for row in ran.rows if len(row) == 2]
    assert [path.split(",")[0] for path in shown] == expected.paths
    assert _read("x") == _read("y")
    assert ran.out.endswith("written: x\n")


def test_a_dry_run_evaluates_nothing(run, command):
    with _metrics("def fails(path):\n    raise AssertionError\n"):
        before = _tree()
        ran = command(
            "--checkpoint_dir=run",
            "--output_path=x",
            "--soup_metric=my_metrics:fails",
            "--dry_run",
        )
        assert ran.status == 0
        assert [p for p in _tree() if "__pycache__" not in p] == before


def test_a_metric_that_is_no_number(run, command):
    with _metrics("def none(path):\n    pass\n"):
        ran = command(
            "--checkpoint_dir=run",
            "--output_path=x",
            "--soup_metric=my_metrics:none",
        )
    _fails(ran, "must return a number. Received: None for 'run/ckpt-1'")


def test_an_error_in_a_metric_says_where(run, command):
    with _metrics("def broken(path):\n    return int(path)\n"):
        before = _tree()
        ran = command(
            "--checkpoint_dir=run",
            "--output_path=new/x",
            "--soup_metric=my_metrics:broken",
        )
        assert [p for p in _tree() if "__pycache__" not in p] == before
    assert ran.status == 1
    assert "my_metrics.py" in ran.err
    assert "return int(path)" in ran.err
    assert ran.err.splitlines()[-1].startswith("error: invalid literal for int")


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
    with _metrics(code):
        before = _tree()
        with pytest.raises(SystemExit) as ended:
            command(
                "--checkpoint_dir=run",
                "--output_path=new/x",
                "--soup_metric=my_metrics:terminated",
            )
        assert ended.value.code == 128 + signal.SIGTERM
        assert [p for p in _tree() if "__pycache__" not in p] == before


# What is shown.


@pytest.mark.parametrize("name", ["a[bold]b[/]", "lr:smile:", "[red", "é ü"])
def test_names_are_shown_as_they_are(name, run, command):
    path = _write(f"{name}/{'x' * 200}", 1)
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
    _fails(command(path, f"--output_path={output}.h5"), f"'{output}.h5'")


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
    assert _read("x") == np.float32(13 / 3)
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
    assert _read("ü") == np.float32(13 / 3)


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
    size = 3 * 4  # the three weights; the object graphs are more
    if large:
        monkeypatch.setattr(average_checkpoints_main, "_LARGE", size)
    ran = command("--checkpoint_dir=run", "--output_path=x", *way)
    assert ran.status == 0
    assert ("averaging" in ran.err) == (terminal and large)
    assert "averaging" not in ran.out
    if not terminal:
        assert ran.err == ""
        assert "\x1b" not in ran.out


# The program.


def _declared():
    """The console scripts of setup.py."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (entries,) = [
        ast.literal_eval(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "entry_points"
    ]
    return dict(re.split(" *= *", e) for e in entries["console_scripts"])


def test_the_console_script_is_declared():
    script = _declared()["swa-average-checkpoints"]
    module, function = script.split(":")
    assert module == average_checkpoints_main.__name__
    assert callable(getattr(average_checkpoints_main, function))


def _examples():
    text = average_checkpoints_main.__doc__.replace("\\\n", "")
    commands = re.findall("^    (swa-average-checkpoints .*)$", text, re.M)
    return [shlex.split(command)[1:] for command in commands]


@pytest.mark.parametrize("arguments", _examples(), ids=" ".join)
def test_the_examples_of_the_help(arguments, run, command):
    for number in (3, 4):
        _write(f"run/ckpt-{number}", number)
    for name in "abc":
        _write(name, 1)
        _write(name, 1, KERAS)
    os.unlink("c.index")
    os.unlink("c.data-00000-of-00001")
    with _metrics("accuracy = weight\n"):
        before = _tree()
        ran = command(*arguments)
        assert (ran.status, ran.err) == (0, "")
        after = [p for p in _tree() if "__pycache__" not in p]
        assert (after == before) == ("--dry_run" in arguments)


def test_there_are_examples_of_all_ways():
    given = {a.split("=")[0] for arguments in _examples() for a in arguments}
    ways = {"weights", "decay", "window", "soup_metric", "dry_run"}
    assert {f"--{way}" for way in ways} <= given


def _program(*arguments, console_script=False):
    """Runs the command line in a process of its own."""
    if not console_script:
        module = "swa_tf.average_checkpoints_main"
        return programs.run_module(module, *arguments, cwd=os.getcwd())
    module, function = _declared()["swa-average-checkpoints"].split(":")
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
    assert _read("x") == np.float32(13 / 3)
    again = _program(*given, console_script=console_script)
    assert again.returncode == 1
    assert "Traceback" not in again.stderr
    last = again.stderr.splitlines()[-1]
    assert last.startswith("error: `output` must not exist. Received: output=")
    assert again.stdout == ""
