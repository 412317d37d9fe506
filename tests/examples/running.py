"""Examples in processes of their own, and what they print."""

import re

from tests import programs


def output_of(name, *arguments):
    done = programs.run_module(f"examples.{name}", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def accuracies(output):
    """Returns the test accuracies that an example printed, in %, by model."""
    lines = re.findall(r"^(.+?) +test accuracy ([\d.]+) %$", output, re.M)
    return {model: float(value) for model, value in lines}


def assert_refused(message, name, *arguments):
    """The example ends with a message, and shows no traceback."""
    done = programs.run_module(f"examples.{name}", *arguments)
    assert done.returncode != 0
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
