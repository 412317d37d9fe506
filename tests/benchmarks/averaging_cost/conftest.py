"""Times mean nothing in tests: nothing rests before a call."""

import pytest

from benchmarks.common import timing


@pytest.fixture(scope="module", autouse=True)
def _no_rest():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "_REST", 0.0)
        yield
