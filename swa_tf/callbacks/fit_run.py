"""One `fit` of a `SWACallback`: its average, its validations and its end."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from swa_tf.averaging import StochasticWeightAveraging
from swa_tf.batch_norm import BatchNormRefit
from swa_tf.callbacks import arguments, model_patches, other_callbacks, resume
from swa_tf.callbacks.fit_averages import (
    BestAverages,
    FitAverages,
    lacks_statistics,
)
from swa_tf.support import atomic_files, model_parts
from swa_tf.support import variables as variables_lib


class FitRun:
    """One `fit`, which ends with `finish`, or when the model's next begins.

    It replaces what Keras would not call, until then or until it raises.

    Args:
        callback: The `SWACallback`, whose model is fit.
        settings: Its arguments.
        saved: Saves the average with the model.
        n_epochs: The epochs of this `fit`; None if nobody has said.

    Attributes:
        averages: The average of this `fit`.
        swapping: Puts it into the model, refitted.
        is_alone: Whether no `fit` of Keras runs the callbacks, but the user.

    Raises:
        ValueError, RuntimeError: If the settings do not fit the model.
    """

    def __init__(
        self,
        callback: tf.keras.callbacks.Callback,
        settings: arguments.Settings,
        saved: resume.SavedAverage,
        n_epochs: int | None,
    ) -> None:
        self._model = callback.model
        self._settings, self._saved = settings, saved
        self._n_epochs = n_epochs
        self._weights: list[Any] = []
        self._results: dict[str, Any] = {}  # of averages, for the logs
        self._epoch: int | None = None  # none has begun
        self._warned_of_averages = False
        self._n_left_out = 0  # epochs that were due, with weights not finite
        self._undo = model_patches.ModelPatches()
        self._undo.callback(saved.detach)
        try:
            self._begin(callback)
        except BaseException:
            self._undo.close()
            raise

    def _begin(self, callback: tf.keras.callbacks.Callback) -> None:
        """Checks the model, and replaces what Keras would not call."""
        model, settings, undo = self._model, self._settings, self._undo
        undo.begin(model)
        running = other_callbacks.running_list()
        self.is_alone = running is None
        self._saved.checkpoints = other_callbacks.checkpoints_of(
            running, callback
        )
        average: Any = settings.averages or StochasticWeightAveraging()
        self.averages = average
        plan = settings.plan(own=average.when, epochs=self._n_epochs)
        self._rate, self._start_epoch = plan.rate, plan.start_epoch
        if self._rate is not None:
            arguments.check_rate_can_be_set(model.optimizer)
        if average.swapped:
            raise RuntimeError(
                f"`fit` was called while the averages of {average.name} are "
                "swapped in, and would train them. Leave `averaged_weights`."
            )
        self._when = when = plan.when or average.when
        if when is not None and model_parts.is_built(model):
            # Otherwise the first `apply` does.
            average.build(self._variables_to_average())
        undo.replace_schedule(average, plan.when)
        self._counted = None if when is None else settings.unit
        if self._counted == "epoch" or self._start_epoch is not None:
            average.n_calls = model_patches.NOT_STARTED
        elif plan.when is not None:
            average.n_calls = 0
        refit = dict(settings.refit)
        if refit:
            refit["refit"] = BatchNormRefit(
                model,
                preprocess=settings.preprocess,
                verbose=settings.verbose,
            )
            if not (
                settings.preprocess or hasattr(model, "preprocess_samples")
            ):
                arguments.check_batches(model, refit["refit_data"])
        if settings.variables.given != "floating":
            self._warn_of_statistics()
        self.swapping = FitAverages(model, average, refit)
        self._best = None
        if settings.best_by is not None:
            self._best = BestAverages(model, *settings.best_by)
        self._saved.best = self._best
        self._saved.attach(average)
        undo.replace(model, "evaluate", self._validation(running))
        if self._counted == "step":
            undo.replace_train_step(self._averaging_step())
        if running is None:
            return
        first = tf.keras.callbacks.LambdaCallback(on_epoch_end=self._report)
        last = tf.keras.callbacks.LambdaCallback(
            on_epoch_begin=self.begin_epoch, on_train_end=self.finish
        )
        others = other_callbacks.prepared(running.callbacks, settings.evaluate)
        undo.replace(running, "callbacks", [first, *others, last])

    def _warn_of_statistics(self) -> None:
        """Warns of batch-norm statistics that will not be the averages'."""
        model = self._model
        others = model_parts.other_batch_norms(model)
        if others and not model_parts.batch_norm_layers(model, trainable=True):
            warnings.warn(
                "These batch norms are none of `tf.keras`: "
                f"{', '.join(others)}. Their statistics do not belong to the "
                "averaged weights, and no refit computes them: while the model "
                "has its averages, call it in training mode on training data.",
                stacklevel=5,
            )
        is_built = model_parts.is_built(model)
        if not self._settings.refit and lacks_statistics(
            model, self._variables_to_average() if is_built else []
        ):
            warnings.warn(
                "The model has batch-norm layers, whose statistics do not "
                "belong to the averaged weights: give `SWACallback` "
                "`refit_data`, such as the training data, unless all of them "
                "are called with `training=False`.",
                stacklevel=5,
            )

    def _variables_to_average(self) -> list[Any]:
        """The variables to average when `fit` began, which it compiles for."""
        if not self._weights:
            self._weights = self._settings.variables.of(self._model)
        return self._weights

    def _averaging_step(self) -> Callable[..., Any]:
        """Returns the model's train step, followed by `apply`."""
        train_step = self._model.train_step

        def averaging_step(*args: Any, **kwargs: Any) -> Any:
            logs = train_step(*args, **kwargs)
            self.averages.apply(self._variables_to_average())
            return logs

        return averaging_step

    def begin_epoch(self, epoch: int, logs: Any = None) -> None:
        """Runs after the `on_epoch_begin` of every other callback."""
        if self._counted == "epoch":
            n_trained = int(self.averages.n_calls)
            if self._epoch is None and n_trained > epoch:
                # Keras 3 writes a backup to two files, one after the other.
                warnings.warn(
                    f"The backup holds the weights after epoch {n_trained}, "
                    f"and Keras goes on with epoch {epoch + 1}: its writing "
                    "was cut short, and epochs are trained twice.",
                    stacklevel=2,
                )
            self._apply(epoch - 1)  # if a backup was made before that
            self.averages.n_calls = epoch
        elif self._start_epoch is not None and epoch >= self._start_epoch:
            self.averages.n_calls = max(int(self.averages.n_calls), 0)
        self._epoch = epoch
        self.swapping.forget_statistics()
        self._saved.restorable = False
        rate = None if self._rate is None else self._rate(epoch)
        if rate is not None:
            self._model.optimizer.learning_rate = rate

    def end_epoch(self, epoch: int) -> None:
        """Averages the weights after an epoch, and looks at the averages."""
        self._apply(epoch)
        if not (self._warned_of_averages or self.swapping.are_finite()):
            self._warned_of_averages = True
            warnings.warn(
                f"The averages are not all finite after epoch {epoch + 1}.",
                stacklevel=3,
            )

    def _apply(self, epoch: int | None) -> None:
        """Averages the weights after `epoch`, if that was not done yet."""
        if self._counted != "epoch" or int(self.averages.n_calls) != epoch:
            return
        weights = self._variables_to_average()
        if not variables_lib.all_finite(weights):
            if self._when.due(epoch):
                self._n_left_out += 1
                warnings.warn(
                    f"Epoch {epoch + 1} is not averaged: its weights are not "
                    "all finite.",
                    stacklevel=2,
                )
            self.averages.n_calls = epoch + 1
            return
        before = int(self.averages.n_models)
        self.averages.apply(weights)
        n_models = int(self.averages.n_models)
        if n_models > before:
            self._print(f"Epoch {epoch + 1}: averaged {n_models} model(s)")

    def has_averages_after(self, epoch: int | None) -> bool:
        """Whether there are averages to write, with those of this epoch."""
        self._apply(epoch)
        return bool(self.swapping.are_there())

    def _report(self, epoch: int, logs: Any) -> None:
        """Runs before the `on_epoch_end` of every other callback."""
        logs.update(self._results)
        self._results = {}

    def _validation(self, running: Any) -> Callable[..., Any]:
        """Returns an `evaluate` that in `fit` also evaluates the averages."""
        evaluate = self._model.evaluate

        def validation(*args: Any, **kwargs: Any) -> Any:
            if running is None or kwargs.get("callbacks") is not running:
                return evaluate(*args, **kwargs)  # called by the user
            self._apply(self._epoch)
            if self._settings.evaluate == "trained":
                return evaluate(*args, **kwargs)
            if not self.swapping.are_there():
                trained = evaluate(*args, **kwargs)
                self._results = _named(trained)
                if self._best is not None:
                    self._best.check_monitor(self._results)
                return trained
            trained = None
            if self._settings.evaluate == "both":
                trained = evaluate(*args, **kwargs)
                # The other callbacks are not called a second time.
                kwargs["callbacks"] = tf.keras.callbacks.CallbackList()
            with self.swapping.swapped_in():
                averaged = evaluate(*args, **kwargs)
                self._results = _named(averaged)
                if self._best is not None and self._epoch is not None:
                    self._best.compare(self._epoch, self._results)
            return averaged if trained is None else trained

        return validation

    def finish(self, logs: Any = None) -> None:
        """Runs after the `on_train_end` of every other callback."""
        with self._undo:
            if self._epoch is None and self._n_epochs:  # resumed after the last
                self._apply(self._n_epochs - 1)
        n_models = int(self.averages.n_models)
        best = None if self._best is None else self._best.found
        found = None
        if not self.swapping.are_there():
            what = "not each weight" if n_models else "nothing"
            why = (
                f"training ended before the first {self._counted} that is due "
                f"by {self._when}, which counts from 0"
            )
            if self._n_left_out:
                epochs = f"{self._n_left_out} epoch(s) that were due"
                why = f"the weights after {epochs} are not all finite"
            elif self._counted is None:
                why = "training ended before `apply` was called"
            found = f"averaged {what}, as {why}"
        elif best is None and not self.swapping.are_finite():
            found = "found averages that are not all finite"
        if found:
            warnings.warn(
                f"`SWACallback` {found}: the model keeps its trained weights.",
                stacklevel=2,
            )
            return
        which = f"the average of {n_models} model(s)"
        if best is not None:
            which = f"the average that did best, in epoch {best.epoch + 1}"
        elif self._best is not None:
            warnings.warn(
                "`SWACallback` cannot know the best averages, as no validation "
                f"gave {self._best.monitor}: the model has the last ones. Give "
                "`fit` `validation_data`.",
                stacklevel=2,
            )
        values = None if best is None else best.values
        with self.swapping.swapped_in(self._settings.keep, values):
            filepath = self._settings.filepath
            if filepath is not None:
                atomic_files.save_model(self._model, filepath)
                self._print(f"The averaged model is in {filepath}")
        if self._settings.keep:
            self._print(f"The model is {which}")

    def _print(self, line: str) -> None:
        if self._settings.verbose:
            sys.stdout.write(f"\n{line}\n")


def _named(results: dict[str, Any]) -> dict[str, Any]:
    """Returns figures of the averages by their names in the logs."""
    return {f"swa_val_{name}": value for name, value in results.items()}
