"""The ways to evaluate a model whose weights are averaged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

import swa_tf

MOVING = "moving"
REFIT = "refit"
SWA = "swa"
SWA_REFIT = "swa_refit"
DECAYED = {MOVING: "decayed_moving", REFIT: "decayed_refit"}
"""From a way to evaluate to its key for the branch that decays."""
WAYS: dict[str, str] = {
    DECAYED[MOVING]: "decayed to zero, moving",
    DECAYED[REFIT]: "decayed to zero, refit",
    MOVING: "last weights, moving",
    REFIT: "last weights, refit",
    SWA: "SWA, moving",
    SWA_REFIT: "SWA, refit",
}
"""From the key in `results.json` to the row of the table."""

Figures = dict[str, dict[str, Any]]
"""From the way to {"accuracy", in per cent; "loss", cross-entropy in nats}.

Where each image counts also "right": bits in hexadecimal, 1 for an image whose
class was found, in the order of the images.
"""


class Evaluator:
    """Evaluates a model in all ways, and leaves it as it was.

    Made inside the scope of a strategy, its replicas share each batch.

    Args:
        model: A `benchmarks.common.resnet.ResNet`, built.
        swa: The averages of its trainable variables.
        refit_data: Un-augmented training images for `refit_batch_norm`.
        moving_free: Whether the model keeps refit statistics apart from the
            moving ones. Otherwise the refit overwrites these, and they are
            put back.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        swa: swa_tf.StochasticWeightAveraging,
        refit_data: tf.data.Dataset,
        moving_free: bool,
    ) -> None:
        self._strategy = tf.distribute.get_strategy()
        self._model = model
        self._swa = swa
        self._refit = swa_tf.BatchNormRefit(model)
        self._refit_data = refit_data
        self._moving_free = moving_free
        self._statistics = swa_tf.BackupVariables(model.non_trainable_variables)
        self._accuracy = tf.keras.metrics.SparseCategoricalAccuracy()
        self._loss = tf.keras.metrics.SparseCategoricalCrossentropy(
            from_logits=True
        )
        self._step = tf.function(self._all_replicas, reduce_retracing=True)

    def __call__(
        self,
        datasets: Mapping[str, tf.data.Dataset],
        each_image: bool = False,
    ) -> dict[str, Figures]:
        """Returns figures on each dataset; those of SWA once it has started.

        Args:
            datasets: From a name to batches of (images, labels).
            each_image: Whether to say of each image if it was right.
        """
        figures: dict[str, Figures] = {name: {} for name in datasets}

        def record(way: str, refit: bool) -> None:
            for name, dataset in datasets.items():
                figures[name][way], right = self._metrics(dataset, refit)
                if each_image:
                    figures[name][way]["right"] = (
                        np.packbits(right).tobytes().hex()
                    )

        record(MOVING, refit=False)
        with self._refitted():
            record(REFIT, refit=True)
        if int(self._swa.n_models) > 0:
            with swa_tf.averaged_weights(self._swa, self._model):
                record(SWA, refit=False)
                with self._refitted():
                    record(SWA_REFIT, refit=True)
        return figures

    @contextlib.contextmanager
    def _refitted(self) -> Iterator[None]:
        self._statistics.save()
        try:
            self._refit(self._refit_data)
            yield
        finally:
            self._statistics.restore()

    def _metrics(
        self, dataset: tf.data.Dataset, refit: bool
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Returns accuracy and loss, and of each image whether it was right."""
        self._accuracy.reset_state()
        self._loss.reset_state()
        use_moving_statistics = not (refit and self._moving_free)
        batches = self._strategy.experimental_distribute_dataset(dataset)
        right: list[Any] = []
        for images, labels in batches:
            found = self._step(images, labels, use_moving_statistics)
            right += self._strategy.experimental_local_results(found)
        figures = {
            "accuracy": 100.0 * float(self._accuracy.result()),
            "loss": float(self._loss.result()),
        }
        return figures, np.concatenate(right)

    def _all_replicas(
        self, images: Any, labels: Any, use_moving_statistics: bool
    ) -> Any:
        return self._strategy.run(
            self._update_metrics, args=(images, labels, use_moving_statistics)
        )

    def _update_metrics(
        self, images: Any, labels: Any, use_moving_statistics: bool
    ) -> tf.Tensor:
        logits = self._model(
            images,
            training=False,
            use_moving_statistics=use_moving_statistics,
        )
        self._accuracy.update_state(labels, logits)
        self._loss.update_state(labels, logits)
        return tf.equal(tf.argmax(logits, -1, labels.dtype), labels)
