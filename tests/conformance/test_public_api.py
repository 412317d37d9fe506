"""Every public name is documented, and every example in a docstring runs."""

import doctest
import importlib
import inspect
import os
import pkgutil
import re
import tempfile

import numpy as np
import pytest
import tensorflow as tf

import swa_tf

# Names that need no full docstring, and why. One that has since got a full
# docstring must leave this list.
EXEMPT = {
    "batch_norm.MovingFreeBatchNormalization.build": "Keras calls it",
    "batch_norm.MovingFreeBatchNormalization.call": "Keras calls it",
    "callbacks.SWACallback.on_epoch_end": "Keras calls it",
    "callbacks.SWACallback.on_predict_begin": "Keras calls it",
    "callbacks.SWACallback.on_test_begin": "Keras calls it",
    "callbacks.SWACallback.on_train_begin": "Keras calls it",
    "callbacks.SWACallback.set_model": "Keras calls it",
    "checkpoints.guess": "of the command line alone",
    "checkpoints.matching": "of the command line alone",
    "schedules.SWALearningRate.from_config": "Keras calls it",
    "schedules.SWALearningRate.get_config": "Keras calls it",
}

MODULES = {
    info.name: importlib.import_module(f"swa_tf.{info.name}")
    for info in pkgutil.iter_modules(swa_tf.__path__)
}


def _own_public_names(holder, module):
    """The public classes and functions that a module or a room defines."""
    return {
        name: value
        for name, value in vars(holder).items()
        if not name.startswith("_")
        and (inspect.isroutine(value) or inspect.isclass(value))
        and f"{getattr(value, '__module__', None)}.".startswith(
            f"{module.__name__}."
        )
    }


def _methods(cls):
    kinds = (staticmethod, classmethod, property)
    return {
        name: value
        for name, value in vars(cls).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, kinds))
    }


def _public():
    """All public classes and functions, and their public methods, by name."""
    found = {}
    for module_name, module in MODULES.items():
        # A command line is documented by its `--help`.
        if module_name.startswith("_") or module_name.endswith("_main"):
            continue
        for name, value in _own_public_names(module, module).items():
            found[f"{module_name}.{name}"] = value
            if inspect.isclass(value):
                for method, member in _methods(value).items():
                    found[f"{module_name}.{name}.{method}"] = member
    return found


PUBLIC = _public()


def _parameters(value):
    if isinstance(value, property):
        return []
    if inspect.isclass(value):
        if "__init__" not in vars(value):
            return []
        value = value.__init__
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    names = inspect.signature(value).parameters
    return [name for name in names if name not in ("self", "cls")]


def _faults(value):
    """What the docstring of `value` lacks."""
    doc = inspect.cleandoc(getattr(value, "__doc__", None) or "")
    faults = []
    summary, _, rest = doc.partition("\n")
    if not summary.endswith((".", "?")) or (rest and rest[0] != "\n"):
        faults.append("a summary of one line that ends with a full stop")
    if ">>> " not in doc:
        faults.append("an example")
    arguments = re.search(r"^Args:\n((?:(?: .*)?\n)+)", doc + "\n", re.M)
    described = arguments.group(1) if arguments else ""
    for name in _parameters(value):
        if not re.search(rf"^ +\*{{0,2}}{name}\b.*:", described, re.M):
            faults.append(f"a line on `{name}` under Args")
    return faults


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - EXEMPT.keys()))
def test_docstring_is_full(name):
    assert _faults(PUBLIC[name]) == []


@pytest.mark.parametrize("name", sorted(EXEMPT))
def test_exemption_is_needed(name):
    if name not in PUBLIC:
        pytest.fail(f"{name} is exempt and does not exist")
    assert _faults(PUBLIC[name]) != []


def test_every_public_name_can_be_reached():
    assert sorted(swa_tf.__all__) == sorted(set(swa_tf.__all__))
    exported = {name: getattr(swa_tf, name) for name in swa_tf.__all__}
    modules = {
        value.__name__.rpartition(".")[2]
        for value in exported.values()
        if inspect.ismodule(value)
    }
    unreachable = [
        name
        for name, value in PUBLIC.items()
        if name.count(".") == 1
        and name not in EXEMPT
        and name.partition(".")[0] not in modules
        and not any(value is other for other in exported.values())
    ]
    assert unreachable == []


def _examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [
        test
        for module in [swa_tf, *MODULES.values()]
        for test in finder.find(
            module,
            extraglobs={
                "swa_tf": swa_tf,
                "tf": tf,
                "np": np,
                "os": os,
                "tempfile": tempfile,
            },
        )
        if test.examples
    ]


@pytest.mark.parametrize("example", _examples(), ids=lambda test: test.name)
def test_example_runs(example):
    printed = []
    runner = doctest.DocTestRunner(
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    result = runner.run(example, out=printed.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(printed)
