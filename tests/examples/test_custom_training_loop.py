"""`examples/custom_training_loop.py` runs as its docstring says."""

import pytest

from tests.examples.running import accuracies, assert_refused, output_of

pytest.importorskip("sklearn", reason="the example uses scikit-learn's digits")


@pytest.mark.slow
def test_custom_training_loop():
    found = accuracies(output_of("custom_training_loop"))
    assert list(found) == ["trained", "averaged", "averaged, refit"]
    # 97 % is what scikit-learn's own SVC example reaches on these digits.
    assert found["averaged, refit"] > 97.0
    assert found["averaged, refit"] > found["averaged"]


def test_bad_flags():
    assert_refused(
        "`--swa_start` must be less than",
        "custom_training_loop",
        "--swa_start=5",
        "--epochs=5",
    )
