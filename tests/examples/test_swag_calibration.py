"""`examples/swag_calibration.py` runs as its docstring says."""

import json
import re

import numpy as np
import pytest

from tests import programs
from tests.examples.running import accuracies, assert_refused, output_of

pytest.importorskip("sklearn", reason="the example uses scikit-learn's digits")

# Each test starts TensorFlow anew.
pytestmark = pytest.mark.slow

MODELS = ["one model", "SWA", "SWAG"]


def test_default(tmp_path):
    plot = tmp_path / "curves.png"
    output = output_of("swag_calibration", f"--plot={plot}")
    found = accuracies(output)
    assert list(found) == MODELS
    assert all(accuracy > 85.0 for accuracy in found.values())
    line = r"^(.+?) +ECE (.+) %, entropy (.+), of unseen (.+), AUROC (.+)$"
    rows = re.findall(line, output, re.M)
    assert [name for name, *_ in rows] == MODELS
    figures = np.array([row[1:] for row in rows], float)
    errors, known, unseen, auroc = figures.T
    # All are less sure of what they do not know; samples the least.
    assert (unseen > 2 * known).all()
    assert (auroc > 0.8).all()
    assert unseen.argmax() == known.argmax() == 2
    said = re.search(r"one model by (.+) points, of SWA by (.+) points", output)
    gains = [errors[2] - errors[0], errors[2] - errors[1]]
    np.testing.assert_allclose(
        [float(g) for g in said.groups()], gains, atol=0.011
    )
    assert plot.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--swa_start=59", "`--epochs` must be at least `--swa_start` + 2"),
        ("--plot=nowhere/curves.png", "No such directory: --plot=nowhere"),
        ("more", "Unknown arguments: ['more']"),
    ],
)
def test_bad_flags(flag, message):
    assert_refused(message, "swag_calibration", flag)


BY_HAND = """
import json
import numpy as np
from examples import swag_calibration

right, wrong = [0.65, 0.35], [0.35, 0.65]
p = np.array([right, right, wrong, [0.95, 0.05]])
curve, error = swag_calibration.reliability(p, np.zeros(4, int))
entropy = swag_calibration.entropy(np.array([[0.5, 0.5, 0.0]]))
print(json.dumps([np.asarray(curve).tolist(), float(error), entropy.tolist()]))
"""


def test_calibration_error_by_hand():
    """Of four predictions in two bins, worked out on paper."""
    # In a process of its own, whose flags are those of the example alone.
    done = programs.Program([], code=BY_HAND).wait()
    assert done.returncode == 0, done.stderr
    curve, error, entropy = json.loads(done.stdout)
    np.testing.assert_allclose(curve, [[0.65, 2 / 3, 0.75], [0.95, 1.0, 0.25]])
    # 0.75 * |0.65 - 0.6667| + 0.25 * |0.95 - 1|
    assert error == pytest.approx(0.75 * (2 / 3 - 0.65) + 0.25 * 0.05)
    np.testing.assert_allclose(entropy, [np.log(2.0)])
