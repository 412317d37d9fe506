"""`import swa_tf` costs little, and gives every public name on first use."""

import ast
import json
import subprocess
import sys

import pytest

from tests import import_rules
from tests.conftest import ROOT, SOURCES

PROGRAM = """
import json, sys, types
import tensorflow as tf
# What TensorFlow itself imports on first use.
tf.keras.layers.BatchNormalization, tf.keras.optimizers.SGD
tf.compat.v1.keras, tf.keras.utils.register_keras_serializable
before = set(sys.modules)
import swa_tf
new = set(sys.modules) - before
found = {"modules": sorted(new), "third_party": []}
for name in {name.partition(".")[0] for name in new}:
    origin = getattr(sys.modules.get(name), "__file__", None) or ""
    if "site-packages" in origin or "dist-packages" in origin:
        found["third_party"].append(name)
found["in_dir"] = dir(swa_tf)
found["all"] = swa_tf.__all__
found["kinds"] = {
    name: type(getattr(swa_tf, name)).__name__ for name in swa_tf.__all__
}
found["unknown"] = hasattr(swa_tf, "nothing")
print(json.dumps(found))
"""


@pytest.fixture(name="found", scope="module")
def fixture_found():
    """The report of a fresh process."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return json.loads(ran.stdout)


def test_importing_adds_no_third_party_module(found):
    # Of TensorFlow, the parsers of what its checkpoints hold.
    assert set(found["third_party"]) <= {"swa_tf", "tensorflow"}


def test_checkpoints_are_not_imported_before_their_use(found):
    assert not [name for name in found["modules"] if "h5py" in name]
    assert "swa_tf.checkpoints" not in found["modules"]


def test_it_has_all_that_it_names(found):
    assert set(found["all"]) <= set(found["in_dir"])
    modules = [k for k, kind in found["kinds"].items() if kind == "module"]
    assert sorted(modules) == ["optimizers", "schedules", "soups"]
    assert found["kinds"]["greedy_soup"] == "function"
    assert not found["unknown"]


def test_what_it_imports_on_first_use_is_what_type_checkers_see():
    path = "swa_tf/__init__.py"
    root = ast.parse((SOURCES / path).read_text(encoding="utf-8"))
    (for_checkers,) = (
        node
        for node in root.body
        if isinstance(node, ast.If)
        and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    assert {
        found.name for found in import_rules.imports_of(path, for_checkers)
    } == {
        "average_checkpoints",
        "average_windows",
        "checkpoints_in",
        "greedy_soup",
        "merge_averages",
        "optimizers",
        "posthoc_average",
        "soups",
    }
