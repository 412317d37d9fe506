"""The benchmarks of cost: flags, arithmetic, tables, and from end to end."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

import swa_tf
from benchmarks import (
    averagers,
    averaging_cost,
    cost_report,
    cost_tables,
    inputs,
    model_costs,
    scaling,
)
from benchmarks.averagers import (
    APPLY,
    AVERAGING,
    FLOOR,
    IN_FUNCTION,
    SWAP,
    SWAPPING,
)
from benchmarks.errors import BenchmarkError
from benchmarks.model_costs import REFIT

ROOT = pathlib.Path(__file__).resolve().parent.parent
EMA, PLAIN = "tf.train.ExponentialMovingAverage", "plain formula"
PNG = b"\x89PNG\r\n\x1a\n"


def here(function, *args):
    """In place of a process of its own, which takes seconds to start."""
    return function(*args)


def parsed(script, *arguments):
    values = script.define_flags(flags.FlagValues())
    values(["script", *arguments])
    return values.flag_values_dict()


class TestFlags:
    @pytest.mark.parametrize(
        ("script", "argument"),
        [
            (averaging_cost, "--parts=averaging,baking"),
            (averaging_cost, "--parts="),
            (averaging_cost, "--ways=by hand"),
            (averaging_cost, "--rounds=0"),
            (averaging_cost, "--memory_gb=0"),
            (scaling, "--rounds=0"),
        ],
    )
    def test_bad_ones(self, script, argument):
        with pytest.raises(flags.IllegalFlagValueError) as raised:
            parsed(script, argument)
        assert argument[2:].split("=")[0] in str(raised.value)

    @pytest.mark.parametrize(
        ("script", "argument", "named"),
        [
            (averaging_cost, "--models=resnet35", "resnet35"),
            (averaging_cost, "--models=4x1B", "memory_gb"),
            (
                scaling,
                "--parameters=1M,many",
                "`--parameters`: it must.*'many'",
            ),
            (scaling, "--replicas_of=four", "replicas_of.*four"),
        ],
    )
    def test_unknown_and_too_large_models(self, script, argument, named):
        with pytest.raises(BenchmarkError, match=named):
            script.run(parsed(script, argument), alone=None)

    @pytest.mark.slow
    @pytest.mark.parametrize("script", ["averaging_cost", "scaling"])
    def test_mistakes_are_told_without_a_traceback(self, script):
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{script}", "something"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode != 0
        assert "error: There are flags only. Received: something" in done.stderr
        assert "Traceback" not in done.stderr


class TestModels:
    def test_shapes(self):
        assert inputs.shapes("3x10") == [(10,)] * 3
        assert inputs.shapes("4x25M") == [(25_000_000,)] * 4
        assert inputs.parameters(inputs.shapes("2x3K")) == 6000
        assert inputs.parameters([(2, 3), (), (5,)]) == 12

    @pytest.mark.parametrize("model", ["", "0x3", "3x", "x3", "3x3G", "vgg"])
    def test_other_names(self, model):
        with pytest.raises(ValueError, match="`model` must be"):
            inputs.shapes(model)

    def test_resnet_is_the_real_one(self):
        shapes = inputs.shapes("resnet34")
        assert 21.0e6 < inputs.parameters(shapes) < 21.5e6
        assert len(shapes) == 104


class TestGroups:
    # A copy is 4 bytes a parameter: here 10^9 parameters, 4 GB a copy. The
    # weights are one, five are kept for what arithmetic leaves lying about.
    def test_all_in_one_where_they_fit(self):
        # Weights, floor, apply, plain, EMA, and five: 10 copies.
        found = averaging_cost.groups([PLAIN, EMA], 10**9, 40 * 10**9)
        assert found == [[FLOOR, APPLY, PLAIN, EMA]]

    def test_two_where_not(self):
        found = averaging_cost.groups([PLAIN, EMA], 10**9, 40 * 10**9 - 1)
        assert found == [[FLOOR, APPLY, PLAIN], [FLOOR, APPLY, EMA]]

    def test_what_counts_as_a_difference_has_its_base_beside_it(self):
        # Gradients are a copy as well: 10 of them.
        wanted = [[FLOOR, APPLY, "Keras SGD", "Keras use_ema"]]
        for ways in (["Keras use_ema"], ["Keras SGD", "Keras use_ema"]):
            found = averaging_cost.groups(ways, 10**9, 40 * 10**9)
            assert found == wanted

    def test_too_large(self):
        with pytest.raises(BenchmarkError, match="--memory_gb=32"):
            averaging_cost.groups([FLOOR], 10**9 + 1, 32 * 10**9)
        assert averaging_cost.groups([FLOOR], 10**9, 32 * 10**9)


class TestTables:
    def test_numbers(self):
        shown = [cost_report.digits(x) for x in (0.0126, 1.255, 12.55, 125.5)]
        assert shown == ["0.013", "1.25", "12.6", "126"]
        assert cost_report.digits(-3.14159) == "-3.14"
        assert cost_report.spread([0.001, 0.002, 0.003, 0.004, 0.005]) == [
            "3.00",
            "2.00 to 4.00",
        ]

    def test_rows_by_hand(self):
        def way(times, **more):
            return {
                "times": times,
                "floor": [1.0, 2.0, 1.0],
                "apply": [2.0, 2.0, 2.0],
                "first": 0.5,
                "early": 0.25,
                "peak": 1200,
                **more,
            }

        found = {
            "parameters": 100,
            "variables": 2,
            "ways": {
                FLOOR: way([1.0, 2.0, 1.0]),
                "Keras use_ema": way([6.0, 7.0, 8.0], base=[2.0, 2.0, 2.0]),
            },
            "absent": {"tfa SWA": "tensorflow_addons"},
        }
        times, memory = cost_tables.sheets({"averaging": {"m": found}})
        assert times.title == "Averaging m: 100 parameters in 2 variables"
        assert times.rows == [
            [FLOOR, "1000", "1000 to 1500", "1.00", "0.500"],
            # 4, 5, 6 s beyond; over the floor 4, 2.5, 6; over apply 2, 2.5, 3.
            ["+ Keras use_ema", "5000", "4500 to 5500", "4.00", "2.50"],
            ["tfa SWA", "absent", "no tensorflow_addons", "", ""],
        ]
        assert memory.rows[0] == [FLOOR, "0.500", "0.250", "12.00", "0"]

    def test_swaps_by_hand(self):
        ways = {
            name: {"times": [seconds] * 3, "growth": 50}
            for name, seconds in zip(SWAPPING, (0.1, 0.004, 0.2, 0.3))
        }
        contents = {"swapping": {"m": {"parameters": 100, "ways": ways}}}
        (sheet,) = cost_tables.sheets(contents)
        assert [row[3:] for row in sheet.rows] == [
            ["1.00", "", ""],
            ["0.040", "", "0.500"],
            ["", "1.00", ""],
            ["", "1.50", ""],
        ]


class TestFit:
    def test_by_hand(self):
        n = np.array([1e2, 1e4, 1e6])
        found = scaling.fit(n, 3.0 * n**0.5)
        np.testing.assert_allclose(found, [3.0, 0.5, 1.0], rtol=1e-12)

    def test_worst_point_by_hand(self):
        # In units of log 2: points (0, 0), (1, 3), (2, 0) have the line y = 1,
        # which the middle one misses by 2: a factor of 4.
        found = scaling.fit([1, 2, 4], [1.0, 8.0, 1.0])
        np.testing.assert_allclose(found, [2.0, 0.0, 4.0], atol=1e-12)

    def test_small_sizes_are_not_fitted(self):
        def ways(seconds):
            names = scaling.WAYS["parameters"]
            return {name: {"times": [seconds]} for name in names}

        found = {10**6: ways(5.0)}
        found.update({10**n: ways(10.0 ** (n - 7)) for n in (7, 8, 9)})
        fits = scaling.fits("parameters", found)
        assert fits[APPLY].slope == pytest.approx(1.0)
        del found[10**9]  # any line goes through two points
        assert scaling.fits("parameters", found) == {}


class TestWays:
    @pytest.mark.parametrize("name", [APPLY, IN_FUNCTION])
    def test_apply_averages_each_time(self, name, monkeypatch):
        made = inputs.Inputs([(3,), (2,)])
        swa = swa_tf.StochasticWeightAveraging()
        monkeypatch.setattr(swa_tf, "StochasticWeightAveraging", lambda: swa)
        step = averagers.WAYS[name].make(made)
        for value in (1.0, 2.0, 6.0):
            for variable in made.variables:
                variable.assign(tf.fill(variable.shape, value))
            step.work()
        assert int(swa.n_models) == 3
        for weight in made.weights:
            np.testing.assert_array_equal(swa.average(weight), 3.0)

    def test_floor_adds_in_place(self):
        made = inputs.Inputs([(3,)])
        made.variables[0].assign([1.0, 2.0, 3.0])
        step = averagers.WAYS[FLOOR].make(made)
        step.work()
        step.work()
        np.testing.assert_array_equal(made.variables[0], [1.0, 2.0, 3.0])

    def test_every_difference_has_its_base(self):
        for way in averagers.WAYS.values():
            if way.beyond:
                base = averagers.WAYS[way.beyond]
                assert (base.uses, base.needs) == (way.uses, way.needs)


class TestEndToEnd:
    def test_averaging_cost(self, tmp_path, capsys, monkeypatch):
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name: None if name == "torch" else find_spec(name),
        )
        ways = [PLAIN, EMA, "Keras use_ema", "torch AveragedModel"]
        values = parsed(
            averaging_cost,
            "--quick",
            f"--ways={','.join(ways)}",
            "--parts=averaging,swapping",
            f"--output_dir={tmp_path}/cost",
        )
        returned = averaging_cost.run(values, ["--quick"], here)
        contents = json.loads((tmp_path / "cost/results.json").read_text())
        assert contents == json.loads(json.dumps(returned))
        found = contents["averaging"]["3x1K"]
        assert (found["parameters"], found["variables"]) == (3000, 3)
        assert list(found["ways"]) == [
            *(FLOOR, APPLY, PLAIN, EMA, "Keras SGD", "Keras use_ema")
        ]
        for figures in found["ways"].values():
            assert len(figures["times"]) == len(figures["floor"]) == 2
            assert min(figures["times"]) > 0.0
            assert figures["first"] > 0.0
        assert found["absent"] == {"torch AveragedModel": "torch"}
        swaps = contents["swapping"]["3x1K"]["ways"]
        assert list(swaps) == list(SWAPPING)
        assert len(swaps[SWAP]["times"]) == 2
        output = capsys.readouterr().out
        page = (tmp_path / "cost/results.md").read_text()
        for name in (*ways, FLOOR, APPLY, SWAP, "no torch"):
            assert name in output
            assert name in page
        assert "python -m benchmarks.averaging_cost --quick\n" in page
        assert f"tensorflow {tf.__version__}" in page
        assert (tmp_path / "cost/chart.png").read_bytes()[:8] == PNG

    def test_scaling(self, tmp_path, capsys):
        values = parsed(
            scaling,
            *("--parameters=400,1B", "--variables=2,4", "--replicas=1,2,3"),
            *("--rounds=2", f"--output_dir={tmp_path}/scaling"),
            *("--memory_gb=1", "--replicas_of=2x10"),
        )
        scaling.run(values, alone=here)
        contents = json.loads((tmp_path / "scaling/results.json").read_text())
        assert list(contents["parameters"]) == ["400"]
        assert contents["left_out"] == [10**9]
        assert list(contents["variables"]) == ["2", "4"]
        assert list(contents["replicas"]) == ["1", "2", "3"]
        for axis, names in scaling.WAYS.items():
            for ways in contents[axis].values():
                assert list(ways) == list(names)
                assert {len(w["times"]) for w in ways.values()} == {2}
        output = capsys.readouterr().out
        assert "apply: t = " in output
        assert "Left out for want of memory: 1,000,000,000" in output
        page = (tmp_path / "scaling/results.md").read_text()
        assert "- apply: t = " in page
        assert (tmp_path / "scaling/chart.png").read_bytes()[:8] == PNG

    @pytest.mark.slow
    def test_other_parts(self, tmp_path):
        values = parsed(
            averaging_cost,
            *("--quick", "--parts=refit,training,imports"),
            f"--output_dir={tmp_path}/cost",
        )
        contents = averaging_cost.run(values, alone=here)
        assert len(contents["refit"][REFIT]["times"]) == 2
        assert contents["refit"][REFIT]["traces"][0] >= 1
        assert len(contents["training"][model_costs.STEP]["times"]) == 6
        assert len(contents["imports"]["swa_tf"]) == 2
        page = (tmp_path / "cost/results.md").read_text()
        for name in (REFIT, model_costs.AVERAGING_STEP, "import swa_tf"):
            assert name in page
        assert "had not come with TensorFlow: none." in page

    @pytest.mark.slow
    def test_all_ways_that_are_there(self):
        there = [name for name, way in AVERAGING.items() if not way.absent]
        found = averagers.measure(inputs.shapes("3x10"), there, 1)
        assert [len(found[name]["times"]) for name in there] == [1] * len(there)
