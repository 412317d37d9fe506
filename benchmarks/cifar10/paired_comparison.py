"""Comparisons of two rows of the table, image by image."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from benchmarks.cifar10.evaluation import (
    DECAYED,
    MOVING,
    REFIT,
    SWA_REFIT,
    WAYS,
)

_LEVEL = 0.05


def sentences(final: dict[str, Any]) -> list[str]:
    """Returns what the test images say of the average against other rows.

    Args:
        final: The figures of the end, as `results.json` has them.
    """
    test = final["test"]
    others = [DECAYED[REFIT] if DECAYED[REFIT] in test else REFIT, MOVING]
    return [_sentence(test, other) for other in others]


def mcnemar(first: str, second: str) -> tuple[int, int, float]:
    """Compares two rows on the same images by McNemar's exact test.

    >>> mcnemar("f0", "c1")
    (2, 1, 1.0)

    Args:
        first: Bits in hexadecimal, 1 for each image that is right.
        second: The bits of the other row, for the same images.

    Returns:
        The number of images that only the first has right, that of those that
        only the second has right, and the probability of a difference at least
        as large if each of these were as likely to be one as the other.

    Source: McNemar 1947, https://doi.org/10.1007/BF02295996.
    """
    one, two = (
        np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8))
        for bits in (first, second)
    )
    only_first = int(np.sum(one > two))
    only_second = int(np.sum(two > one))
    if not only_first + only_second:
        return 0, 0, 1.0
    test = stats.binomtest(only_first, only_first + only_second)
    return only_first, only_second, float(test.pvalue)


def _sentence(test: dict[str, Any], other: str) -> str:
    swa = test[SWA_REFIT]
    gained, lost, p = mcnemar(swa["right"], test[other]["right"])
    points = swa["accuracy"] - test[other]["accuracy"]
    verdict = "significant" if p < _LEVEL else "not significant"
    return (
        f"On the test images, {WAYS[SWA_REFIT]} against {WAYS[other]}: "
        f"{points:+.2f} points, {gained} images right that were wrong and "
        f"{lost} wrong that were right, {verdict} (McNemar's exact test, "
        f"p = {p:.2g})."
    )
