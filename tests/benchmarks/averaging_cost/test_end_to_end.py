"""The two programs, from their flags to their reports."""

import importlib.util
import json

import pytest
import tensorflow as tf
from absl import flags

from benchmarks.averaging_cost import __main__ as averaging_cost
from benchmarks.averaging_cost import resnet_costs, scaling
from benchmarks.averaging_cost.averagers import (
    APPLY,
    FLOOR,
    SWAP,
    SWAPPING,
)
from benchmarks.averaging_cost.resnet_costs import REFIT
from benchmarks.common.errors import BenchmarkError
from tests import programs

EMA, PLAIN = "tf.train.ExponentialMovingAverage", "plain formula"
PNG = b"\x89PNG\r\n\x1a\n"


def here(function, *args):
    """Calls the function here: a process of its own takes seconds to start."""
    return function(*args)


def parsed(script, *arguments):
    values = script.define_flags(flags.FlagValues())
    values(["script", *arguments])
    return values.flag_values_dict()


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
def test_bad_ones(script, argument):
    with pytest.raises(flags.IllegalFlagValueError) as raised:
        parsed(script, argument)
    assert argument[2:].split("=")[0] in str(raised.value)


@pytest.mark.parametrize(
    ("script", "argument", "named"),
    [
        (averaging_cost, "--models=resnet35", "resnet35"),
        (averaging_cost, "--models=4x1B", "memory_gb"),
        (averaging_cost, "--first_calls=Nothing", "first_calls=Nothing"),
        (
            scaling,
            "--parameters=1M,many",
            "`--parameters`: it must.*'many'",
        ),
        (scaling, "--replicas_of=four", "replicas_of.*four"),
    ],
)
def test_unknown_and_too_large_models(script, argument, named):
    with pytest.raises(BenchmarkError, match=named):
        script.run(parsed(script, argument), alone=None)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["averaging_cost", "averaging_cost.scaling"])
def test_mistakes_are_told_without_a_traceback(script):
    done = programs.run_module(f"benchmarks.{script}", "something")
    assert done.returncode != 0
    assert "error: There are flags only. Received: something" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_averaging_cost(tmp_path, capsys, monkeypatch):
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
    for name in (*found["ways"], SWAP, "Not installed: torch"):
        assert name in output
        assert name in page
    assert "python -m benchmarks.averaging_cost --quick\n" in page
    assert f"tensorflow {tf.__version__}" in page
    assert (tmp_path / "cost/chart.png").read_bytes()[:8] == PNG


@pytest.mark.slow
def test_scaling(tmp_path, capsys):
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
def test_other_parts(tmp_path):
    values = parsed(
        averaging_cost,
        "--quick",
        "--parts=first_calls,refit,training,averaged_model,imports",
        f"--output_dir={tmp_path}/cost",
    )
    contents = averaging_cost.run(values, alone=here)
    assert len(contents["refit"][REFIT]["times"]) == 2
    assert contents["refit"][REFIT]["traces"][0] >= 1
    assert len(contents["training"][resnet_costs.STEP]["times"]) == 6
    assert len(contents["imports"]["swa_tf"]) == 2
    assert list(contents["first_calls"]) == ["MobileNet"]
    page = (tmp_path / "cost/results.md").read_text()
    for name in (
        REFIT,
        resnet_costs.AVERAGING_STEP,
        resnet_costs.UPDATING_STEP,
        "import swa_tf",
        "MobileNet",
    ):
        assert name in page
    assert "had not come with TensorFlow: none." in page
