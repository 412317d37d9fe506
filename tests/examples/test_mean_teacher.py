"""`examples/mean_teacher.py` runs as its docstring says."""

import re

import pytest

from tests.examples.running import accuracies, assert_refused, output_of
from tests.fitting import exhaustive

NAME = "mean_teacher"
MODELS = ["labels alone", "student", "teacher"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--seed=17", "--seeds=1"],
        exhaustive(["--seed=14", "--seeds=4"]),
    ],
)
def test_the_teacher_helps(flags):
    output = output_of(NAME, *flags)
    found = accuracies(output)
    assert list(found) == MODELS
    # In the docstring's run, by 16 points, and by 10 for the four seeds.
    assert found["teacher"] > found["labels alone"] + 3.0
    (gain,) = re.findall(
        r"^the teacher is better .* by (\S+) points", output, re.M
    )
    difference = found["teacher"] - found["student"]
    assert abs(float(gain) - difference) < 0.02
    if "--seeds=4" in flags:
        assert difference > 0.0


@pytest.mark.slow
def test_bad_flags():
    assert_refused("Unknown arguments: ['more']", NAME, "more")
