"""Settings and strategies that the property-based tests share."""

import hypothesis
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

LARGE = (130, 130)  # above the size from which updates are compiled
SHAPES = ((), (0,), (1,), (3,), (2, 0, 3), (1, 4), (5, 3), (2, 1, 1, 2), LARGE)

dtypes = st.sampled_from(["float16", "bfloat16", "float32", "float64"])
shapes = st.sampled_from(SHAPES)
seeds = st.integers(0, 2**16)


def numbers_of_cases(quick, slow, exhaustive):
    """Three parameters: `quick` cases, more that are slow, more again.

    The cases of each number are others.
    """
    return pytest.mark.parametrize(
        "n_cases",
        [
            quick,
            pytest.param(slow, marks=pytest.mark.slow),
            pytest.param(
                exhaustive, marks=[pytest.mark.slow, pytest.mark.exhaustive]
            ),
        ],
    )


def holds(n_cases, *strategies):
    """Decorates a function: it is run, on so many cases.

    They are the same in each run: what fails is printed, and fails again.
    """

    def run(function):
        property_ = hypothesis.given(*strategies)(function)
        property_ = hypothesis.settings(max_examples=n_cases)(property_)
        hypothesis.seed(n_cases)(property_)()

    return run


def values(seed, shape, dtype, scales=(1e-2, 1.0, 30.0)):
    """Numbers of about one size, a tenth of them zero."""
    random = np.random.default_rng(seed)
    array = random.normal(random.choice([0.0, 3.0]), 1.0, shape)
    array = np.where(random.uniform(size=shape) < 0.1, 0.0, array)
    return (array * random.choice(scales)).astype(numpy_dtype(dtype))


def numpy_dtype(dtype):
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def epsilon(dtype):
    """The distance from 1 to the next larger number."""
    return float(ml_dtypes.finfo(numpy_dtype(dtype)).eps)
