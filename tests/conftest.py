"""Where things are, and which stack was tested.

What tests need of TensorFlow is in `tests/plugin.py`. With `pytest -n` the
process that hands out the tests does without it, and starts seconds earlier.
"""

import importlib.util
import os
import pathlib

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"
SOURCES = pathlib.Path(importlib.util.find_spec("swa_tf").origin).parents[1]
"""The folder with `swa_tf`: `ROOT`, unless a wheel is tested."""

_stacks = set()


def pytest_configure(config):
    if not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("tests.plugin")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """One of the processes of `pytest -n` has ended, and says its stack."""
    if "stack" in getattr(node, "workeroutput", {}):
        _stacks.add(node.workeroutput["stack"])


def pytest_terminal_summary(terminalreporter):
    for stack in sorted(_stacks):
        terminalreporter.write_line(stack)
