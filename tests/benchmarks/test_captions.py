"""The numbers in the captions of docs/evidence.md are those of the figures."""

import json
import re

import numpy as np
import pytest

from benchmarks.table.intervals import t_interval
from tests.conftest import ROOT

NUMBERS = {2: "two", 5: "five"}


def curves(found):
    means = {way: lines["mean"] for way, lines in found["ways"].items()}
    last = means["moving"][-10:]
    return [
        f"over {NUMBERS[len(found['seeds'])]} seeds",
        f"{means['swa_refit'][-1]:.1f} % for SWA, "
        f"{means['decayed_refit'][-1]:.1f} % for the decayed weights",
        f"{means['refit'][-1]:.1f} % for the last ones, all refit",
        f"{means['swa'][-1]:.1f} % for SWA and "
        f"{means['decayed_moving'][-1]:.1f} % for the decayed",
        f"between {min(last):.1f} and {max(last):.1f} % in the last ten",
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
    rises = [c["train"][:, -1] - c["train"][:, 0] for c in (swa, decayed)]
    assert (rises[0] < rises[1]).all()
    assert (swa["test"] < decayed["test"]).all()
    begins = [c["train"].mean(0)[0] for c in (swa, decayed)]
    ends = [c["train"].mean(0)[-1] for c in (swa, decayed)]
    return [
        "a little higher at the average, {:.4f} against {:.4f}".format(*begins),
        "to {:.3f} against {:.3f} in the mean".format(*ends),
        f"of the {NUMBERS[len(swa['train'])]}",
        f"in the mean at {found['distances'][-1]:.1f}",
    ]


def refit(found):
    ways = ("pooled", "mean_of_batches")
    accuracy = [np.array(found["accuracy"][way]) for way in ways]
    loss = [np.array(found["loss"][way]) for way in ways]
    image = 100.0 / found["test_samples"]
    assert abs(accuracy[0] - accuracy[1]).max() == pytest.approx(image)
    first, last = accuracy[0][0], accuracy[0][-1]
    assert np.ptp(last) == 0.0
    return [
        f"{first.mean():.1f} % in the mean with {found['samples'][0]} ",
        f"({first.min():.1f} to {first.max():.1f})",
        f"{last.mean():.1f} % with {found['samples'][-1]:,}",
        f"{abs(loss[0] - loss[1]).max():.4f} of the loss",
    ]


def momentum(found):
    cost, of_average = {}, {}
    for cell in found["cells"]:
        ways = {way: np.mean(v) for way, v in cell["validation"].items()}
        lost = ways["refit"] - ways["moving"]
        cost.setdefault(cell["batch_norm_momentum"], []).append(lost)
        lost = ways["swa_refit"] - ways["swa"]
        of_average.setdefault(cell["batch_norm_momentum"], []).append(lost)
        if cell["batch_norm_momentum"] == 0.999:
            assert max(ways["moving"], ways["swa"]) < 16.0  # Chance is 10 %.
    assert found["weight_decays"] == [0.0, 0.0005]
    assert len(found["seeds"]) == 1
    without, with_decay = of_average[0.9]
    return [
        f"cost {without:.1f} points without weight decay and {with_decay:.1f} "
        "with it at 0.9, and {:.1f} and {:.1f} points at 0.99".format(
            *of_average[0.99]
        ),
        f"a constant rate of {found['flags']['learning_rate']}",
        f"cost {min(cost[0.9]):.0f} to {max(cost[0.9]):.0f} points at",
        f"{min(cost[0.99]):.0f} to {max(cost[0.99]):.0f} at 0.99",
    ]


def small_curves(found):
    mean = {way: lines["mean"] for way, lines in found["ways"].items()}
    swa, last, decayed = (
        mean[way] for way in ("swa_refit", "refit", "decayed_refit")
    )
    assert len(swa) == 6  # epochs 14, 16 to 24
    assert all(a > b for a, b in zip(swa, last[-6:]))
    lead, intervals = [], []
    for i in range(14, 26, 2):
        ahead = [
            at(run["epochs"], i)["swa_refit"]["accuracy"]
            - at(run["decayed"], i)["refit"]["accuracy"]
            for run in small_runs(found["seeds"])
        ]
        lead.append(np.mean(ahead))
        intervals.append(t_interval(ahead, 0.95))
    np.testing.assert_allclose(lead, np.subtract(swa, decayed), atol=1e-4)
    low, high = intervals[0]
    assert low > 0.0
    assert all(below < 0.0 < above for below, above in intervals[1:])
    return [
        f"over {NUMBERS[len(found['seeds'])]} seeds",
        f"by {lead[0]:.1f} points (interval {low:.1f} to {high:.1f}, paired)",
        f"behind them, with {swa[-1]:.1f} against {decayed[-1]:.1f} %",
    ]


def small_runs(seeds):
    """The kept runs of MomentumW on CIFAR-10."""
    folder = ROOT / "benchmarks" / "results" / "table" / "small"
    for seed in seeds:
        path = folder / f"momentumw-seed-{seed}.json"
        yield json.loads(path.read_text(encoding="utf-8"))


def at(epochs, number):
    """The evaluation after an epoch on the validation images."""
    [found] = [each for each in epochs if each["epoch"] == number]
    return found["validation"]


@pytest.mark.parametrize(
    ("number", "expected"),
    enumerate((curves, plane, rays, refit, momentum), 1),
)
def test_numbers_of_a_caption(number, expected):
    check_caption(f"Figure {number}", expected.__name__, expected)


def test_numbers_of_the_caption_of_cifar10():
    check_caption("CIFAR-10", "small/curves", small_curves)


def check_caption(heading, name, expected):
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    after = page.split(f"## {heading}\n")[1]
    section = " ".join(re.split(r"^## ", after, flags=re.M)[0].split())
    path = ROOT / "benchmarks" / "results" / "figures" / f"{name}.json"
    assert f"{name}.png" in section
    for phrase in expected(json.loads(path.read_text(encoding="utf-8"))):
        assert phrase in section, phrase
