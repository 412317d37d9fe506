"""The example that chooses the length of an average after the training."""

import re

import pytest

from tests.examples.running import assert_refused, output_of

pytest.importorskip("matplotlib", reason="the example draws its curve")

# Each test starts TensorFlow anew.
pytestmark = pytest.mark.slow

EXAMPLE = "posthoc_ema"


def test_digits(tmp_path):
    plot = tmp_path / "losses.png"
    output = output_of(EXAMPLE, "--epochs=4", f"--plot={plot}")
    rows = re.findall(
        r"^(0\.\d+|trained) +([\d.]+) +([\d.]+)$", output, re.MULTILINE
    )
    losses = {name: (float(a), float(b)) for name, a, b in rows}
    assert len(losses) == 10
    trained = losses.pop("trained")
    best = min(losses, key=lambda name: losses[name][0])
    said = re.search(
        r"^width (.+) changed the test loss by (.+)$", output, re.M
    )
    assert said[1] == best
    change = losses[best][1] - trained[1]
    assert float(said[2]) == pytest.approx(change, abs=1.1e-4)
    assert change < 0.0  # what it shows
    error = re.search(r"kept at 0.1: (.+), relative", output)[1]
    assert float(error) < 1e-3
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_bad_flags():
    message = "No such directory: --plot=nowhere"
    assert_refused(message, EXAMPLE, "--plot=nowhere/losses.png")
