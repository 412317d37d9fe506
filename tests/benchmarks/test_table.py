"""The grid of runs and its tables."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks.cifar10 import config, evaluation
from benchmarks.common import files
from benchmarks.common.errors import BenchmarkError
from benchmarks.table import __main__ as program
from benchmarks.table import (
    execution,
    intervals,
    kept_results,
    plan,
    summary,
    table_pages,
)
from tests import programs
from tests.benchmarks.cifar10.tiny import TINY
from tests.benchmarks.table_results import WAYS, result

# The 0.975 quantile of Student's t, from a printed table: by sample size.
_T = {2: 12.706205, 3: 4.302653, 5: 2.776445}


@pytest.mark.parametrize(
    "values", [[1.0, 4.0], [7.5, 7.1, 7.9], [1, 2, 3, 5, 8]]
)
def test_mean_deviation_and_interval(values):
    n = len(values)
    mean, deviation = intervals.mean_and_deviation(values)
    assert mean == pytest.approx(np.mean(values))
    assert deviation == pytest.approx(np.std(values, ddof=1))
    half = _T[n] * np.std(values, ddof=1) / np.sqrt(n)
    assert intervals.t_interval(values, 0.95) == pytest.approx(
        [np.mean(values) - half, np.mean(values) + half], rel=1e-6
    )


def test_one_value_has_no_interval():
    assert intervals.mean_and_deviation([3.0]) == (3.0, None)
    assert intervals.t_interval([3.0], 0.95) is None


def seeds_of(optimizer, *swa_refit, **settings):
    """Results of seeds 0, 1, ... with an accuracy of the average each."""
    others = dict.fromkeys(WAYS, 50.0)
    return [
        result(optimizer, seed, {**others, "swa_refit": value}, **settings)
        for seed, value in enumerate(swa_refit)
    ]


class TestTables:
    def test_ways_are_those_of_the_benchmark(self):
        assert table_pages.WAYS.keys() == evaluation.WAYS.keys()

    def test_figures(self):
        found = summary.summary(
            [*seeds_of("momentumw", 51.0, 52.0, 54.0), *seeds_of("adam", 49.0)]
        )
        assert list(found) == ["momentumw", "adam"]
        assert found["momentumw"]["seeds"] == [0, 1, 2]
        accuracy = found["momentumw"]["test"]["swa_refit"]["accuracy"]
        assert accuracy["mean"] == 52.333333
        deviation = np.std([51, 52, 54], ddof=1)
        assert accuracy["deviation"] == pytest.approx(deviation, abs=1e-6)
        above = found["momentumw"]["validation"]["swa_refit"]["accuracy"]
        assert above["mean"] == pytest.approx(160 / 3, abs=1e-6)
        gain = found["momentumw"]["differences"]["swa_refit-decayed_moving"]
        half = _T[3] * deviation / np.sqrt(3)
        assert gain["accuracy"]["interval"] == pytest.approx(
            [7 / 3 - half, 7 / 3 + half], abs=1e-5
        )
        assert gain["loss"]["mean"] == pytest.approx(-0.07 / 3, abs=1e-6)
        assert found["adam"]["test"]["swa"]["loss"]["deviation"] is None

    def test_page(self):
        results = [
            *seeds_of("momentumw", 51.0, 52.0, 54.0),
            *seeds_of("adamw", 60.0, 60.0, 60.5),
            *seeds_of("adam", 49.0),
        ]
        rows = lines(table_pages.pages("digits", results)["table.md"])
        assert "52.33 ± 1.53" in rows["momentumw"][1]
        assert "49.00" in rows["adam"][1]
        # Of the differences, the first is SWA refit less last refit.
        assert "+2.33 | -1.46 to +6.13" in rows["momentumw"][5]
        assert "| yes |" in rows["momentumw"][5]
        assert "+10.17 | +9.45 to +10.88 | **no** |" in rows["adamw"][5]
        assert "one seed: no interval" in rows["adam"][5]
        assert "momentum" not in rows  # None is published of the digits.

    def test_published_figures_are_a_table_of_their_own(self):
        results = seeds_of("adamw", 60.0, preset="small")
        text = table_pages.pages("small", results)["table.md"]
        ours, published = text.split("## Published\n")
        assert "92.10" not in ours
        assert "do not compare the heights" in published
        assert lines(published)["adamw"] == [
            "| adamw | 0.01 | 85.23 | 88.94 | - |",
            "| adamw | 0.01 to 0.0001 | 90.98 | 91.08 | 92.10 |",
        ]

    def test_run_without_a_decayed_branch(self):
        results = [result(accuracies=dict.fromkeys(WAYS[2:], 50.0))]
        rows = lines(table_pages.pages("digits", results)["table.md"])
        assert rows["momentumw"][1].endswith("50.00 | - | - | 1 |")
        assert len(rows["momentumw"]) == 5 + 4

    def test_command_makes_the_same_runs(self):
        results = [
            *seeds_of("momentumw", *[50.0] * 5, width=8),
            *seeds_of("adamw", 50.0, 50.0, learning_rate=0.001, width=8),
        ]
        text = table_pages.pages("narrow", results)["table.md"]
        start = "    python -m benchmarks.table --preset=digits --name=narrow"
        assert [x for x in text.splitlines() if x.startswith(start)] == [
            f"{start} --optimizers=momentumw --settings=width=8",
            f"{start} --optimizers=adamw --seeds=0,1 --settings=width=8",
        ]
        assert "with python 3.11.7, swa_tf 0.1.0, in 0.7 hours" in text

    @pytest.mark.parametrize(
        "second",
        [
            {"seed": 1, "learning_rate": 0.3},
            {"seed": 1, "epochs": 31},
            {"optimizer": "adamw", "learning_rate": 0.001, "width": 8},
            {"preset": "small"},
        ],
    )
    def test_other_plans_do_not_mix(self, second):
        with pytest.raises(BenchmarkError, match="must share their settings"):
            summary.summary([result(), result(**second)])

    def test_nothing_to_show(self, tmp_path):
        with pytest.raises(BenchmarkError, match="Received: none"):
            table_pages.pages("digits", kept_results.results(str(tmp_path)))


def lines(text):
    """The rows of all tables by their first cell, with single spaces."""
    found = {}
    for line in text.splitlines():
        if line.startswith("| "):
            found.setdefault(line.split("|")[1].strip(), []).append(
                " ".join(line.split())
            )
    return found


def planned(tmp_path, optimizers=("momentumw",), seeds=("0", "1"), **more):
    """The runs of a grid of digits in a temporary directory."""
    settings = {"preset": "digits", "data_dir": None, "settings": [], **more}
    return plan.runs(
        optimizers=optimizers,
        seeds=seeds,
        runs_dir=str(tmp_path / "runs"),
        results_dir=str(tmp_path / "results"),
        **settings,
    )


class TestPlan:
    def test_default_seeds_in_the_order_of_the_runs(self, tmp_path):
        runs = planned(tmp_path, list(plan.SEEDS), None, preset="small")
        assert [f"{run}" for run in runs[4:7]] == [
            "momentumw seed 4",
            "adamw seed 0",
            "adamw seed 1",
        ]
        assert len(runs) == 5 + 5 + 3 + 3
        assert runs[5].given["learning_rate"] == 0.01

    def test_digits_are_the_first_command_of_the_readme(self, tmp_path):
        first = planned(tmp_path)[0].given
        assert config.resolve(first) == config.resolve({"preset": "digits"})

    def test_settings_of_every_run(self, tmp_path):
        changed = ["epochs=4", "epochs_before_swa=2", "weight_decay_on=kernels"]
        for run in planned(
            tmp_path,
            settings=[*changed, "compare_decay=False", "learning_rate=1"],
        ):
            settings = config.resolve(run.given)
            assert (settings.epochs, settings.compare_decay) == (4, False)
            assert settings.weight_decay_on == "kernels"
            assert plan.departures(config.as_flags(settings)) == {
                "epochs": 4,
                "epochs_before_swa": 2,
                "weight_decay_on": "kernels",
                "compare_decay": False,
                "learning_rate": 1.0,
            }

    @pytest.mark.parametrize(
        ("more", "named"),
        [
            ({"optimizers": ["sgd"]}, "--optimizers"),
            ({"seeds": ["one"]}, "--seeds"),
            ({"seeds": ["-1"]}, "--seed"),
            ({"settings": ["widht=4"]}, "widht"),
            ({"settings": ["seed=4"]}, "--settings"),
            ({"settings": ["epochs=0"]}, "--epochs"),
            ({"settings": ["epochs=2.5"]}, "type int"),
            ({"settings": ["width=wide"]}, "type int"),
            ({"settings": ["compare_decay=no"]}, "type bool"),
            ({"data_dir": "no/such"}, "--data_dir"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, more, named, tmp_path):
        with pytest.raises(BenchmarkError, match=named):
            planned(tmp_path, **more)


_RUN = """
import os, sys
directory, contents = sys.argv[1:]
lock = os.stat(f"{directory}.lock")

def is_lock(descriptor):
    try:
        return os.path.samestat(os.fstat(descriptor), lock)
    except OSError:
        return False

if not any(map(is_lock, range(3, 100))):
    sys.exit("the lock has not been inherited")
os.makedirs(directory)
if not contents:
    sys.exit(3)
with open(os.path.join(directory, "results.json"), "w") as file:
    file.write(contents)
"""


@pytest.fixture(name="started")
def fixture_started(monkeypatch):
    """The runs that a grid starts; those named in `diverging` fail."""
    started = Started()

    def command(run):
        started.append(f"{run}")
        found = "" if f"{run}" in started.diverging else result(**run.given)
        contents = found and json.dumps(found)
        return [sys.executable, "-c", _RUN, run.directory, contents]

    monkeypatch.setattr(execution, "_command", command)
    return started


class Started(list):
    diverging = ()


class TestGrid:
    def test_goes_on_where_it_stopped(self, tmp_path, started):
        execution.execute(planned(tmp_path)[:1])
        shutil.rmtree(tmp_path / "runs")
        assert (
            execution.execute(planned(tmp_path, ["momentumw", "adamw"])) == []
        )
        assert started == [
            "momentumw seed 0",
            "momentumw seed 1",
            "adamw seed 0",
            "adamw seed 1",
        ]
        kept = [path.name for path in (tmp_path / "results").iterdir()]
        assert sorted(kept) == [
            f"{name}-seed-{seed}.json"
            for name in ("adamw", "momentumw")
            for seed in (0, 1)
        ]

    def test_failed_run(self, tmp_path, started, capsys):
        started.diverging = ["momentumw seed 1"]
        values = {
            "preset": "digits",
            "optimizers": ["momentumw"],
            "seeds": ["0", "1", "2"],
            "data_dir": None,
            "settings": [],
            "name": None,
            "runs_dir": str(tmp_path / "runs"),
            "results_dir": str(tmp_path / "results"),
            "run": True,
            "docs": False,
        }
        with pytest.raises(
            BenchmarkError, match="1 of 3 runs failed: momentumw seed 1"
        ):
            program.execute(values)
        assert len(started) == 3
        assert "| 0, 2" in capsys.readouterr().out
        written = (tmp_path / "results" / "digits" / "table.md").read_text()
        assert "--seeds=0,2" in written

    def test_result_of_other_settings_is_refused(self, tmp_path, started):
        execution.execute(planned(tmp_path)[:1])
        with pytest.raises(BenchmarkError, match=r"seed-0.json .*'epochs': 31"):
            execution.execute(planned(tmp_path, settings=["epochs=31"]))
        assert started == ["momentumw seed 0"]

    def test_file_is_whole_or_as_before(self, tmp_path, monkeypatch):
        path = tmp_path / "new" / "result.json"
        files.write_text(str(path), "before")
        monkeypatch.delattr(os, "replace")
        with pytest.raises(AttributeError):
            files.write_text(str(path), "after")
        assert path.read_text() == "before"

    def test_waits_for_a_run_that_outlived_its_grid(self, tmp_path, capsys):
        directory = str(tmp_path / "seed-0")
        wait = [sys.executable, "-c", "import time; time.sleep(0.5)"]
        with execution._alone(directory) as lock:
            orphan = subprocess.Popen(wait, pass_fds=[lock])
        with execution._alone(directory):
            assert orphan.wait(0.1) == 0
        assert "Waiting" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_and_continued(tmp_path):
    tiny = {**TINY, "width": 2, "epochs": 2, "compare_decay": False}
    settings = [f"{k}={v}" for k, v in tiny.items() if k not in plan._OWN_FLAGS]
    arguments = [
        *("--preset=digits", "--optimizers=momentumw", "--seeds=0,1"),
        *(f"--runs_dir={tmp_path}/runs", f"--results_dir={tmp_path}/results"),
        *("--name=tiny", f"--settings={','.join(settings)}"),
    ]
    killed = programs.Program(arguments, module="benchmarks.table")
    runs, results = tmp_path / "runs" / "tiny", tmp_path / "results" / "tiny"
    deadline = time.monotonic() + 300
    while not (runs / "momentumw" / "seed-1" / "checkpoints").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGTERM)
    assert "interrupted" in killed.wait().stderr
    assert [path.name for path in results.iterdir()] == [
        "momentumw-seed-0.json"
    ]
    shutil.rmtree(runs / "momentumw" / "seed-0")
    done = programs.run_module("benchmarks.table", *arguments)
    assert done.returncode == 0, done.stderr
    assert "2 runs, 1 of them finished" in done.stdout
    assert not (runs / "momentumw" / "seed-0").exists()
    text = (results / "table.md").read_text()
    assert text in done.stdout
    found = files.read_json(str(results / "momentumw-seed-1.json"))
    assert config.resolve({**tiny, "seed": 1}) == config.resolve(found["flags"])
    accuracy = found["final"]["test"]["swa_refit"]["accuracy"]
    other = files.read_json(str(results / "momentumw-seed-0.json"))
    mean = (accuracy + other["final"]["test"]["swa_refit"]["accuracy"]) / 2
    assert f"{mean:.2f} ± " in lines(text)["momentumw"][1]
