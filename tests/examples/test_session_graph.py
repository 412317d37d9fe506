"""`examples/session_graph.py` runs as its docstring says."""

import pytest

from tests.examples.running import accuracies, assert_refused, output_of

pytest.importorskip("sklearn", reason="the example uses scikit-learn's digits")


def test_session_graph():
    found = accuracies(output_of("session_graph"))
    assert list(found) == ["trained", "averaged", "restored"]
    assert found["restored"] == found["trained"]
    assert found["averaged"] > 95.0


def test_bad_flags():
    assert_refused(
        "`--swa_start` must be less than",
        "session_graph",
        "--swa_start=9",
        "--steps=9",
    )
