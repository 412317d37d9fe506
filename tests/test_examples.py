"""Each example runs as its docstring says, and shows what it claims."""

import pathlib
import re

import pytest

from tests import programs

pytest.importorskip("sklearn", reason="the examples use scikit-learn's digits")

ROOT = pathlib.Path(__file__).resolve().parent.parent


def output_of(name, *arguments):
    done = programs.run_module(f"examples.{name}", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def accuracies(output):
    """In percent, by model, as every example prints them at its end."""
    lines = re.findall(r"^(.+?) +test accuracy ([\d.]+) %$", output, re.M)
    return {model: float(value) for model, value in lines}


def assert_refused(message, name, *arguments):
    """The example ends with a message, and shows no traceback."""
    done = programs.run_module(f"examples.{name}", *arguments)
    assert done.returncode != 0
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_custom_training_loop():
    found = accuracies(output_of("custom_training_loop"))
    assert list(found) == ["trained", "averaged", "averaged, refit"]
    # 97 % is what scikit-learn's own SVC example reaches on these digits.
    assert found["averaged, refit"] > 97.0
    assert found["averaged, refit"] > found["averaged"]


def test_session_graph():
    found = accuracies(output_of("session_graph"))
    assert list(found) == ["trained", "averaged", "restored"]
    assert found["restored"] == found["trained"]
    assert found["averaged"] > 95.0


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("custom_training_loop", ["--swa_start=5", "--epochs=5"]),
        ("session_graph", ["--swa_start=9", "--steps=9"]),
    ],
)
def test_bad_flags(name, arguments):
    assert_refused("`--swa_start` must be less than", name, *arguments)


def test_examples_stay_short():
    # What examples read is no example.
    paths = set((ROOT / "examples").glob("*.py")) - {
        ROOT / "examples" / "data.py"
    }
    for path in paths:
        assert len(path.read_text().splitlines()) <= 150, path
