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


def _own_public_names(module):
    """The public classes and functions that a module defines."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isroutine(value) or inspect.isclass(value))
        and getattr(value, "__module__", None) == module.__name__
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
    exported = {name: getattr(swa_tf, name) for name in swa_tf.__all__}
    found = {}
    for name, value in exported.items():
        if inspect.ismodule(value):
            own = _own_public_names(value)
            found.update({f"{name}.{each}": own[each] for each in own})
        elif name != "__version__":
            found[name] = value
    for name, value in list(found.items()):
        classes = inspect.getmro(value) if inspect.isclass(value) else ()
        own = [cls for cls in classes if cls.__module__.startswith("swa_tf.")]
        others = [cls for cls in classes if cls not in own]
        for cls in own:
            for method, member in _methods(cls).items():
                # What overrides Keras or TensorFlow is documented there.
                if not any(method in vars(other) for other in others):
                    found.setdefault(f"{name}.{method}", member)
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
    """Lists the parts that the docstring of `value` lacks."""
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


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_docstring_is_full(name):
    assert _faults(PUBLIC[name]) == []


def test_every_public_name_is_listed_once():
    assert sorted(swa_tf.__all__) == sorted(set(swa_tf.__all__))


def _modules():
    """The root and every module in it."""
    yield swa_tf
    for info in pkgutil.walk_packages(swa_tf.__path__, "swa_tf."):
        yield importlib.import_module(info.name)


def _examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [
        test
        for module in _modules()
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
