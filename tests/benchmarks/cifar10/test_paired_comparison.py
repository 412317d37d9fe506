"""Two rows compared image by image, worked out by hand."""

import pytest

from benchmarks.cifar10 import paired_comparison


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("ff", "ff", (0, 0, 1.0)),
        # 8 of 8: twice 1 / 2^8.
        ("ff", "00", (8, 0, 2 / 2**8)),
        ("00ff", "0000", (8, 0, 2 / 2**8)),
        # At least 5 of 6 on either side: twice (6 + 1) / 2^6.
        ("f8", "04", (5, 1, 2 * (1 + 6) / 2**6)),
        ("c0", "30", (2, 2, 1.0)),
    ],
)
def test_mcnemar(first, second, expected):
    gained, lost, p = paired_comparison.mcnemar(first, second)
    assert (gained, lost) == expected[:2]
    assert p == pytest.approx(expected[2])


def test_sentences():
    test = {
        "decayed_refit": {"accuracy": 50.0, "right": "f0"},
        "moving": {"accuracy": 0.0, "right": "00"},
        "refit": {"accuracy": 50.0, "right": "0f"},
        "swa_refit": {"accuracy": 100.0, "right": "ff"},
    }
    over_decayed, over_last = paired_comparison.sentences({"test": test})
    assert "+50.00 points" in over_decayed
    assert "decayed to zero, refit" in over_decayed
    assert "4 images right that were wrong and 0 wrong" in over_decayed
    assert ", not significant (" in over_decayed  # p = 2 / 2^4
    assert "p = 0.12" in over_decayed
    assert "+100.00 points" in over_last
    assert "last weights, moving" in over_last
    assert ", significant (" in over_last  # p = 2 / 2^8
    del test["decayed_refit"]
    assert (
        "last weights, refit" in paired_comparison.sentences({"test": test})[0]
    )
