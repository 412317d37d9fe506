"""The speed of an epoch against bare steps: from the flags to the ratios."""

import pytest
from absl import flags

from benchmarks.common.errors import BenchmarkError
from benchmarks.common.resnet import BLOCKS
from benchmarks.training_speed import __main__ as training_speed


def parsed(*arguments):
    values = training_speed.define_flags(flags.FlagValues())
    values(["script", *arguments])
    return values.flag_values_dict()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Even though the")
def test_ratios(monkeypatch, capsys):
    monkeypatch.setitem(BLOCKS, 18, (1, 1, 1, 1))
    found = training_speed.run(
        parsed(
            "--max_samples=100",
            "--width=2",
            "--batch_size=16",
            "--refit_samples=20",
            "--rounds=1",
        )
    )
    assert found.keys() == {"images_a_second", "of_bare", "evaluation"}
    assert min(found.values()) > 0.0
    # 80 images are left to train on: 5 steps.
    assert "digits: 80 images an epoch" in capsys.readouterr().out


def test_bad_ones():
    with pytest.raises(flags.IllegalFlagValueError):
        parsed("--rounds=0")
    with pytest.raises(BenchmarkError, match="batch_size"):
        training_speed.run(parsed("--batch_size=5000"))
