"""Lines fitted to times, by hand."""

import numpy as np
import pytest

from benchmarks.averaging_cost import scaling
from benchmarks.averaging_cost.averagers import APPLY


def test_by_hand():
    n = np.array([1e2, 1e4, 1e6])
    found = scaling.fit(n, 3.0 * n**0.5)
    np.testing.assert_allclose(found, [3.0, 0.5, 1.0], rtol=1e-12)


def test_worst_point_by_hand():
    # In units of log 2: points (0, 0), (1, 3), (2, 0) have the line y = 1,
    # which the middle one misses by 2: a factor of 4.
    found = scaling.fit([1, 2, 4], [1.0, 8.0, 1.0])
    np.testing.assert_allclose(found, [2.0, 0.0, 4.0], atol=1e-12)


def test_small_sizes_are_not_fitted():
    def ways(seconds):
        names = scaling.WAYS["parameters"]
        return {name: {"times": [seconds]} for name in names}

    found = {10**6: ways(5.0)}
    found.update({10**n: ways(10.0 ** (n - 7)) for n in (7, 8, 9)})
    fits = scaling.fits("parameters", found)
    assert fits[APPLY].slope == pytest.approx(1.0)
    del found[10**9]  # any line goes through two points
    assert scaling.fits("parameters", found) == {}
