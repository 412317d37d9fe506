"""Tests of the benchmark from end to end, killed and resumed among them."""

import json
import os
import random
import signal
import time

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver

import swa_tf
from benchmarks.cifar10 import __main__ as cifar10
from benchmarks.cifar10 import config, evaluation
from benchmarks.common import resnet
from tests import programs
from tests.benchmarks.cifar10.tiny import TINY


def arguments(output_dir, *more):
    given = [f"--{name}={value}" for name, value in TINY.items()]
    return [*given, f"--output_dir={output_dir}", *more]


def start(output_dir, *more):
    """The benchmark in a process of its own, as a user starts it."""
    given = arguments(output_dir, *more)
    return programs.Program(given, module="benchmarks.cifar10")


def finish(process):
    done = process.wait()
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def results(path):
    """Returns the results that two runs with the same flags share: no times."""
    contents = json.loads((path / "results.json").read_text())
    assert contents.pop("timings")["total_seconds"] > 0.0
    assert contents.pop("invocation")["output_dir"] == str(path)
    return contents


@pytest.fixture(scope="module", name="whole")
def fixture_whole(tmp_path_factory):
    """A run that nobody killed: its directory, output and duration."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    begun = time.monotonic()
    output = finish(start(path))
    return path, output, time.monotonic() - begun


@pytest.mark.slow
class TestEndToEnd:
    def test_console(self, whole):
        _, output, _ = whole
        for label in evaluation.WAYS.values():
            assert label in output
        for heading in ("val. acc. %", "val. loss", "test acc. %", "test loss"):
            assert heading in output
        assert "epoch 3/3" in output
        assert "Traceback" not in output

    def test_results(self, whole):
        path, _, _ = whole
        contents = results(path)
        assert contents["flags"] == config.as_flags(config.resolve(TINY))
        assert contents["seed"] == 1
        assert contents["stack"]["tensorflow"] == tf.__version__
        assert contents["stack"]["swa_tf"] == swa_tf.__version__
        epochs = contents["epochs"]
        assert [e["epoch"] for e in epochs] == [1, 2, 3]
        assert [e["n_models"] for e in epochs] == [0, 1, 2]
        ways = [list(e["validation"]) for e in epochs]
        of_swa = ["moving", "refit", "swa", "swa_refit"]
        assert ways == [["moving", "refit"]] + [of_swa] * 2
        # One model averaged is that model.
        second = epochs[1]["validation"]
        assert second["swa"] == second["moving"]
        assert second["swa_refit"] == second["refit"]
        decayed = contents["decayed"]
        assert [e["epoch"] for e in decayed] == [2, 3]
        assert [e["n_models"] for e in decayed] == [0, 0]
        assert [list(e["validation"]) for e in decayed] == [ways[0]] * 2
        # 240 images are 7 steps of 32 each epoch: the last of 14 has 1 / 14.
        high = contents["flags"]["learning_rate"]
        assert decayed[1]["learning_rate"] == pytest.approx(high / 14)
        assert epochs[2]["learning_rate"] == pytest.approx(high)
        # The first steps of both branches are alike, but for the rate.
        assert decayed[0]["loss"] == pytest.approx(epochs[1]["loss"], rel=0.5)
        # The end, on validation, is the last epoch of each branch.
        final = contents["final"]
        assert final["validation"] == {
            **epochs[2]["validation"],
            **{
                f"decayed_{way}": figures
                for way, figures in decayed[1]["validation"].items()
            },
        }
        assert set(final["test"]) == set(evaluation.WAYS)

    def test_weights(self, whole):
        path, _, _ = whole
        kept = weights(path)
        assert sorted(kept) == ["decayed", "epoch-00002", "epoch-00003", "swa"]
        iterates = kept["epoch-00002"], kept["epoch-00003"]
        for i, average in enumerate(kept["swa"]):
            mean = np.mean([iterate[i] for iterate in iterates], axis=0)
            np.testing.assert_allclose(average, mean, rtol=1e-6, atol=1e-7)
        assert not np.array_equal(kept["decayed"][0], kept["epoch-00003"][0])

    def test_reports(self, whole):
        path, _, _ = whole
        text = (path / "results.md").read_text()
        final = results(path)["final"]
        for way, label in evaluation.WAYS.items():
            accuracy = f"{final['test'][way]['accuracy']:.2f}"
            row = next(x for x in text.splitlines() if f"| {label} |" in x)
            assert f"| {accuracy} |" in row
        assert "python -m benchmarks.cifar10 --preset=digits" in text
        assert (path / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    def test_scalars(self, whole):
        path, _, _ = whole
        epochs = results(path)["epochs"]
        scalars = {}
        for file in (path / "tensorboard").iterdir():
            for event in tf.compat.v1.train.summary_iterator(str(file)):
                for value in event.summary.value:
                    series = scalars.setdefault(value.tag, [])
                    series.append(
                        (event.step, float(tf.make_ndarray(value.tensor)))
                    )
        for way, first in (("moving", 1), ("swa_refit", 2)):
            assert scalars[f"validation_accuracy/{way}"] == [
                (e["epoch"], pytest.approx(e["validation"][way]["accuracy"]))
                for e in epochs[first - 1 :]
            ]
        assert [s for s, _ in scalars["train/learning_rate"]] == [1, 2, 3]
        assert [s for s, _ in scalars["decayed_train/loss"]] == [2, 3]
        assert len(scalars["validation_accuracy/decayed_refit"]) == 2

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("saved", "wait"),
        [
            ("", 0.6),  # at a moment that is another in every run
            ("epoch-00004", 0.0),  # in the branch that decays
        ],
    )
    def test_killed_and_resumed(self, saved, wait, whole, tmp_path):
        path, output, seconds = whole
        killed = tmp_path / "killed"
        process = start(killed, "--resume")
        # Once training has started, so that there is something to lose.
        deadline = time.monotonic() + 300
        while not (killed / "checkpoints" / saved).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(random.SystemRandom().uniform(0.0, wait * seconds))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        last = [p.name for p in (killed / "checkpoints").iterdir()]
        resumed = finish(start(killed, "--resume"))
        assert results(killed) == results(path), f"killed at {last}"
        assert table(resumed) == table(output)
        assert [p.name for p in killed.rglob(".partial*")] == []
        assert names(killed) == names(path)
        there, kept = weights(path), weights(killed)
        for name, arrays in there.items():
            for one, other in zip(arrays, kept[name]):
                np.testing.assert_array_equal(one, other)

    def test_finished_run_is_shown_again(self, whole, capsys):
        path, output, _ = whole
        before = results(path)
        (path / "curves.png").unlink()
        (path / "results.md").unlink()
        main(path, "--resume")
        assert results(path) == before
        assert (path / "curves.png").exists()
        assert (path / "results.md").exists()
        assert table(capsys.readouterr().out) == table(output)

    def test_existing_directory_is_refused(self, whole):
        path, _, _ = whole
        before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
        with pytest.raises(SystemExit) as raised:
            main(path)
        assert "--output_dir" in str(raised.value.code)
        with pytest.raises(SystemExit) as raised:
            main(path, "--resume", "--learning_rate=0.3")
        assert "--learning_rate" in str(raised.value.code)
        assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before


def main(output_dir, *more):
    """The benchmark in this process, with the flags of `TINY`."""
    given = dict(a.lstrip("-").split("=") for a in arguments(output_dir))
    for flag in more:
        name, _, value = flag.lstrip("-").partition("=")
        given[name] = value or "true"
    with flagsaver.as_parsed(**given):
        cifar10.main(["cifar10"])


def table(output):
    """The rows of the table on the console."""
    return [line for line in output.splitlines() if line.startswith("│")]


def names(path):
    """The files of a run; TensorBoard's have the time in their names."""
    return sorted(
        os.path.relpath(p, path)
        for p in path.rglob("*")
        if "tfevents" not in p.name
    )


def weights(path):
    """Returns the weights that were kept, by the name of their file."""
    return {
        file.stem: list(np.load(file).values())
        for file in (path / "weights").iterdir()
    }


def figures(monkeypatch, tmp_path, name, **flags):
    """Returns the results of a run whose batch norm uses moving statistics.

    The statistics of a batch would differ between replicas.
    """
    call = resnet.ResNet.call
    monkeypatch.setattr(
        resnet.ResNet,
        "call",
        lambda self, inputs, training=None, **chosen: call(
            self, inputs, training=False, **chosen
        ),
    )
    settings = config.resolve({**TINY, "learning_rate": 0.01, **flags})
    found = cifar10.execute(settings, str(tmp_path / name), False, [])
    monkeypatch.undo()
    return named([*found["epochs"], found["final"]])


def named(tree, name=""):
    """The numbers of a tree, by the way to them."""
    if not isinstance(tree, (dict, list)):
        return {name: tree}
    branches = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {
        path: value
        for key, branch in branches
        for path, value in named(branch, f"{name}/{key}").items()
    }


@pytest.mark.slow
def test_replicas_find_what_one_device_finds(monkeypatch, tmp_path):
    one = figures(monkeypatch, tmp_path, "one")
    two = figures(
        monkeypatch, tmp_path, "two", distribution="mirrored", num_replicas=2
    )
    assert one.keys() == two.keys()
    for name, value in one.items():
        # An image at the border of two classes may fall to either side.
        if name.endswith("right"):
            bits = int(value, 16) ^ int(two[name], 16)
            assert bin(bits).count("1") <= 0.02 * 4 * len(value), name
            continue
        tolerance = {"abs": 2.0} if "accuracy" in name else {"rel": 1e-3}
        assert two[name] == pytest.approx(value, **tolerance), name


@pytest.mark.slow
def test_mixed_precision_and_fewer_evaluations(tmp_path):
    settings = config.resolve(
        {**TINY, "precision": "mixed_bfloat16", "evaluate_every": 2}
    )
    found = cifar10.execute(settings, str(tmp_path / "run"), False, [])
    assert found["flags"]["precision"] == "mixed_bfloat16"
    assert found["final"]["test"]["swa_refit"]["accuracy"] > 15.0
    # The last of three epochs, and every second before it.
    evaluated = [list(e["validation"]) for e in found["epochs"]]
    assert [bool(ways) for ways in evaluated] == [True, False, True]
    assert [bool(e["validation"]) for e in found["decayed"]] == [False, True]
