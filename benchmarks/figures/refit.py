"""Figure 4: accuracy of the average against the samples of the refit."""

from __future__ import annotations

import time
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from tqdm import tqdm

import swa_tf
from benchmarks.common.errors import BenchmarkError
from benchmarks.figures import drawing
from benchmarks.figures.saved_run import (
    Meter,
    SavedRun,
    assign,
    batches,
    sample,
)

_VARIANCES = {
    "pooled": "pooled variance",
    "mean_of_batches": "mean of the batches' variances",
}
_MEASURES = {"accuracy": "test accuracy (%)", "loss": "test loss (nats)"}


def sizes(n: int, batch_size: int) -> list[int]:
    """Returns numbers of samples: whole batches, twice as many each time.

    >>> sizes(500, 64)
    [64, 128, 256, 448]
    >>> sizes(1150, 64)  # and not 1024 beside 1088
    [64, 128, 256, 512, 1088]

    Args:
        n: The number of training images, >= `batch_size`.
        batch_size: Images in a batch. All batches have this size, for a refit
            to be traced once only, and for one variance to be compared with
            the other at the same size.
    """
    most = n // batch_size * batch_size
    found = []
    size = batch_size
    while 1.25 * size < most:
        found.append(size)
        size *= 2
    return [*found, most]


def compute(
    run: SavedRun, draws: int, batch_size: int, test_samples: int, seed: int
) -> dict[str, Any]:
    """Refits the average to more and more images, several times each.

    Args:
        run: A run whose weights were kept.
        draws: How often to draw the images of a refit.
        batch_size: Images in a batch of the refit.
        test_samples: Test images to measure on.
        seed: Of all choices of images.

    Raises:
        BenchmarkError: If there are fewer training images than a batch.
    """
    train = run.splits.train
    if not 1 <= batch_size <= len(train):
        raise BenchmarkError(
            f"`--refit_batch` must be >= 1 and <= {len(train)}, the number of "
            f"training images. Received: --refit_batch={batch_size}"
        )
    meter = Meter(
        run,
        train.take(slice(batch_size)),
        {"test": sample(run.splits.test, test_samples, seed)},
        batch_size,
    )
    assign(run.model, run.weights("swa"))
    refits = {v: swa_tf.BatchNormRefit(run.model, v) for v in _VARIANCES}
    for refit in refits.values():  # traces, which is no part of the cost
        refit(batches(train.take(slice(batch_size)), batch_size))
    numbers = sizes(len(train), batch_size)
    found: dict[str, dict[str, list[list[float]]]] = {
        measure: {v: [] for v in _VARIANCES} for measure in _MEASURES
    }
    seconds: list[list[float]] = []
    total = len(numbers) * draws
    with tqdm(total=total, desc="refit", unit="draw") as progress:
        for n in numbers:
            seconds.append([])
            for by_variance in found.values():
                for rows in by_variance.values():
                    rows.append([])
            for draw_number in range(draws):
                drawn = sample(train, n, seed + 1 + draw_number)
                images = batches(drawn, batch_size)
                for variance, refit in refits.items():
                    start = time.perf_counter()
                    refit(images)
                    if variance == "pooled":
                        seconds[-1].append(time.perf_counter() - start)
                    figures = meter.evaluate()["test"]
                    accuracy = 100.0 - figures["error"]
                    found["accuracy"][variance][-1].append(accuracy)
                    found["loss"][variance][-1].append(figures["loss"])
                progress.update()
    return {
        "flags": run.flags,
        "draws": draws,
        "batch_size": batch_size,
        "test_samples": min(test_samples, len(run.splits.test)),
        "seed": seed,
        "samples": numbers,
        **found,
        "seconds": seconds,
    }


def draw(contents: dict[str, Any]) -> Figure:
    """Draws accuracy and loss above, and the seconds of a refit below."""
    figure = drawing.new(
        f"{drawing.describe(contents['flags'])}\n"
        f"SWA weights, mean of {contents['draws']} draws of the samples, "
        "band from the least to the largest",
        height=8.0,
    )
    panels = figure.subplots(3, 1, sharex=True)
    for axes, (measure, title) in zip(panels, _MEASURES.items()):
        for i, (variance, label) in enumerate(_VARIANCES.items()):
            drawing.band(
                axes,
                contents["samples"],
                drawing.over_draws(contents[measure][variance]),
                color=("C2", "C4")[i],
                linestyle=("-", "--")[i],
                marker=".",
                label=f"{label}, batches of {contents['batch_size']}",
            )
        axes.set_ylabel(title)
    panels[0].legend(loc="lower right", fontsize="small")
    below = panels[-1]
    drawing.band(
        below,
        contents["samples"],
        drawing.over_draws(contents["seconds"]),
        color="black",
        marker=".",
    )
    below.set_ylabel("seconds of a refit")
    below.set_yscale("log")
    below.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    below.yaxis.set_major_formatter("{x:g}")
    below.set_xscale("log", base=2)
    below.set_xticks(contents["samples"], map(str, contents["samples"]))
    below.minorticks_off()
    below.set_xlabel(
        "training images of the refit, in the end all whole batches"
    )
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure
