"""`examples/best_averages.py` runs as its docstring says."""

import re

import pytest

from tests.examples.running import accuracies, assert_refused, output_of

pytest.importorskip("sklearn", reason="the example uses scikit-learn's digits")

# It starts TensorFlow anew, and writes a file after each epoch.
pytestmark = pytest.mark.slow


def test_best_averages(tmp_path):
    output = output_of("best_averages", f"--folder={tmp_path}")
    logged, found = re.findall(r" (\d\.\d{6})", output)
    assert logged == found
    best, last = map(float, re.findall(r"test loss (\d\.\d+)$", output, re.M))
    said = re.search(r"a test loss that is lower by (.+)\.$", output, re.M)
    assert float(said[1]) == pytest.approx(last - best, abs=2e-4)
    assert best < last
    right = accuracies(output)
    assert list(right) == ["best averages", "last averages"]
    assert all(accuracy > 70.0 for accuracy in right.values())
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best.keras", "last.keras"]


def test_bad_flags():
    assert_refused("Unknown arguments: ['more']", "best_averages", "more")
