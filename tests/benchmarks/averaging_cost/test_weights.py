"""Models by their names: the shapes of their weights."""

import pytest

from benchmarks.averaging_cost import weights


def test_shapes():
    assert weights.shapes("3x10") == [(10,)] * 3
    assert weights.shapes("4x25M") == [(25_000_000,)] * 4
    assert weights.parameters(weights.shapes("2x3K")) == 6000
    assert weights.parameters([(2, 3), (), (5,)]) == 12


@pytest.mark.parametrize("model", ["", "0x3", "3x", "x3", "3x3G", "vgg"])
def test_other_names(model):
    with pytest.raises(ValueError, match="`model` must be"):
        weights.shapes(model)
