"""The numbers in the captions of docs/evidence.md are those of the figures."""

import json
import re

import numpy as np
import pytest

from tests.conftest import ROOT


def curves(found):
    """The means after the last epoch, and of the last weights at the 28th."""
    means = {way: lines["mean"] for way, lines in found["ways"].items()}
    assert means["swa_refit"][-1] == pytest.approx(means["decayed_refit"][-1])
    return [
        {2: "two seeds", 5: "five seeds"}[len(found["seeds"])],
        f"{means['swa_refit'][-1]:.1f} % for SWA and for the decayed weights",
        f"{means['refit'][-1]:.1f} % for the last ones, all refit",
        f"{means['decayed_moving'][-1]:.1f} % for the decayed",
        f"{means['moving'][-1]:.1f} % for the last weights",
        f"at {means['moving'][-3]:.1f} % two epochs before",
        f"for SWA it is {means['swa'][-1]:.1f} %",
    ]


def plane(found):
    wrong = [
        found["marked"][f"iterate_{i}"]["test"]["error"] for i in (1, 2, 3)
    ]
    star = found["marked"]["average"]["test"]["error"]
    return [
        f"{star:.2f} % of the test images are wrong at the star",
        f"against {wrong[0]:.2f}, {wrong[1]:.2f} and {wrong[2]:.2f} %",
    ]


def rays(found):
    swa, decayed = (
        {name: np.array(lines) for name, lines in found["centres"][c].items()}
        for c in ("swa", "decayed")
    )
    assert (swa["train"] < decayed["train"]).all()
    near, test = (
        found["distances"],
        swa["test"].mean(0) > decayed["test"].mean(0),
    )
    higher = [d for d, is_higher in zip(near, test) if is_higher]
    assert swa["test_error"][0, 0] == decayed["test_error"][0, 0]
    ends = swa["train"].mean(0)[-1], decayed["train"].mean(0)[-1]
    return [
        f"{ends[0]:.3f} against {ends[1]:.3f} in the mean at {near[-1]:.1f}",
        f"higher from the average at {min(higher):.2g} to {max(higher):.2g}",
    ]


def refit(found):
    pooled, means = (
        np.array(found["accuracy"][way])
        for way in ("pooled", "mean_of_batches")
    )
    losses = [
        np.array(found["loss"][way]) for way in ("pooled", "mean_of_batches")
    ]
    np.testing.assert_array_equal(pooled, means)
    least, most = pooled[0].min(), pooled[0].max()
    return [
        f"{pooled[0].mean():.1f} % in the mean with {found['samples'][0]} ",
        f"({least:.1f} to {most:.1f})",
        f"{pooled[-1].mean():.1f} % with {found['samples'][-1]:,}",
        f"by {abs(losses[0] - losses[1]).max():.4f} of the loss",
    ]


def momentum(found):
    cost = {}
    for cell in found["cells"]:
        ways = {way: np.mean(v) for way, v in cell["validation"].items()}
        lost = ways["refit"] - ways["moving"]
        cost.setdefault(cell["batch_norm_momentum"], []).append(lost)
    return [
        f"cost {min(cost[0.9]):.0f} to {max(cost[0.9]):.0f} points at",
        f"{min(cost[0.99]):.0f} to {max(cost[0.99]):.0f} at 0.99",
    ]


@pytest.mark.parametrize(
    ("number", "expected"),
    enumerate((curves, plane, rays, refit, momentum), 1),
)
def test_numbers_of_a_caption(number, expected):
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    section = re.split(
        r"^## ", page.split(f"## Figure {number}\n")[1], flags=re.M
    )
    caption = " ".join(section[0].split())
    name = expected.__name__
    path = ROOT / "benchmarks" / "results" / "figures" / f"{name}.json"
    assert f"{name}.png" in caption
    for phrase in expected(json.loads(path.read_text(encoding="utf-8"))):
        assert phrase in caption, phrase
