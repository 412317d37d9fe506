"""The Keras callback that averages weights in `model.fit`."""

from __future__ import annotations

import copy
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from swa_tf.averaging import (
    StochasticWeightAveraging,
    WeightAverage,
    check_average,
)
from swa_tf.batch_norm import BatchNormRefit
from swa_tf.callbacks import arguments, other_callbacks, overrides, resume
from swa_tf.callbacks.fit_averages import (
    BestAverages,
    FitAverages,
    lacks_statistics,
)
from swa_tf.support import checks, compat, whole_files
from swa_tf.support import variables as variables_lib


class SWACallback(tf.keras.callbacks.Callback):
    """Averages weights in `model.fit`, and leaves the averaged model.

    >>> x, y = tf.ones([8, 1]), tf.ones([8, 1])
    >>> model = tf.keras.Sequential([tf.keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> swa = swa_tf.SWACallback(start_epoch=2, verbose=0)
    >>> _ = model.fit(x, y, epochs=5, verbose=0, callbacks=[swa])
    >>> int(swa.averages.n_models)
    3

    Averaging: after `start_epoch` and each later epoch, or with `unit="step"`
    after train steps, as a part of the compiled step. Each `fit` starts a new
    average, unless `averages` was given, which goes on.

    Validation: the logs get `swa_val_loss` and so on beside `val_loss`, for
    every callback. Before the first average they are of the trained model.

    At the end, after all other callbacks, the model has its averaged weights
    and, with `refit_data`, batch-norm statistics for them. If anything raises,
    it has its trained ones. `BackupAndRestore`, or whatever else saves the
    model, saves and restores the average with it, if it was built before.

    Args:
        start_epoch: The first epoch whose weights are averaged, counted from
            0; or which part of the `epochs` of `fit` goes before it, in (0, 1):
            0.75 is epoch 7 of 10, since that many are whole. Give this or
            `start_step`. With neither, give `averages`: its own `when` decides,
            or, if it has none, you call its `apply` yourself (manual mode).
        average_period: The number >= 1 of `unit`s from one average to the next.
        unit: "epoch" or "step"; None is "step" with `start_step`, otherwise
            "epoch". With "step", `start_epoch` stands for its first step.
        start_step: The first train step (batch) whose weights are averaged,
            counted from 0 at the beginning of `fit`.
        swa_learning_rate: The learning rate from `start_epoch` on, set at the
            beginning of each epoch after all other callbacks. For rates by
            steps give the optimizer a schedule.
        schedule: Instead of `swa_learning_rate`: a function from every epoch
            to its rate, such as a schedule of `swa_tf.schedules` in epochs.
        refit_data: Batches for `swa_tf.refit_batch_norm`, such as the training
            data; a model with batch normalization needs it.
        refit_steps: How many of them to take; None takes all.
        preprocess: As in `swa_tf.BatchNormRefit`.
        evaluate: The weights that validation uses: "trained"; "averaged", for
            `val_...` and `swa_val_...`, also while the `on_test_...` of other
            callbacks run; or "both", in two runs.
        averages: A `WeightAverage` to use instead of a new
            `StochasticWeightAveraging`.
        variables: The variables to average: "trainable", the default;
            "floating", all of a floating-point dtype, so that batch-norm
            statistics are averaged too, where they cannot be refitted; a list;
            or a function of the model:
            `lambda gan: gan.generator.trainable_variables`.
        var_list: Another name of `variables`.
        final_weights: Which weights the model has after `fit`: "averaged" or
            "trained".
        filepath: Where to write, or replace, the averaged model at the end: a
            `.keras`, `.h5` or `.weights.h5` file; without suffix a SavedModel.
        restore_best_averages: Whether the averages of the end are those that
            did best in a validation, with all that the model had in it, as
            `EarlyStopping` restores trained weights. It keeps one more copy of
            the weights.
        monitor: The figure of `restore_best_averages`: `swa_val_...`.
        mode: "min" or "max", which is best; "auto" is what Keras knows of the
            metric.
        verbose: 1 prints a line for each epoch averaged and at the end, and on
            a terminal shows the progress of long refits; or 0.

    Attributes:
        averages: The average of the present or last `fit`; None before any.

    Raises:
        TypeError, ValueError, OSError: If an argument is none of these,
            or does not fit another or, in `fit`, before training, the model.

    Source: the modes are those of torchcontrib.optim.SWA; Izmailov et al.
    2018, https://arxiv.org/abs/1803.05407, algorithm 1.
    """

    def __init__(
        self,
        start_epoch: float | None = None,
        average_period: int = 1,
        unit: str | None = None,
        *,
        start_step: int | None = None,
        swa_learning_rate: float | None = None,
        schedule: Callable[[int], Any] | None = None,
        refit_data: Iterable[Any] | None = None,
        refit_steps: int | None = None,
        preprocess: Callable[[Any], Any] | None = None,
        evaluate: str = "both",
        averages: WeightAverage | None = None,
        variables: str | Iterable[Any] | Callable[[Any], Any] | None = None,
        var_list: Iterable[Any] | Callable[[Any], Iterable[Any]] | None = None,
        final_weights: str = "averaged",
        filepath: str | os.PathLike[str] | None = None,
        restore_best_averages: bool = False,
        monitor: str = "swa_val_loss",
        mode: str = "auto",
        verbose: int = 1,
    ) -> None:
        super().__init__()
        self.averages: Any = None
        self._weights: list[Any] = []
        self._fit_averages: Any = None
        self._best: BestAverages | None = None
        if unit is None:
            unit = "epoch" if start_step is None else "step"
        checks.choice("unit", unit, ("epoch", "step"))
        self._variables = arguments.Variables(variables, var_list)
        checks.choice("evaluate", evaluate, ("averaged", "trained", "both"))
        checks.choice("final_weights", final_weights, ("averaged", "trained"))
        if averages is not None:
            check_average("averages", averages)
        if filepath is not None:
            whole_files.check_model_path("filepath", filepath)
        self._refit = arguments.refit_arguments(
            refit_data, refit_steps, preprocess, again=evaluate != "trained"
        )
        if checks.boolean("restore_best_averages", restore_best_averages):
            leaves = final_weights == "averaged" or filepath is not None
            arguments.check_best(monitor, mode, evaluate, leaves)
        self._best_by = (monitor, mode) if restore_best_averages else None
        own = getattr(averages, "when", None)
        given = start_epoch, start_step, average_period, unit
        when = arguments.plan(*given, None, None, own=own, epochs=1).when or own
        if when is None and averages is None:
            raise ValueError(
                "`start_epoch` or `start_step` must be given, or `averages` "
                "for the manual mode. Received none of them"
            )
        ignored = average_period != 1 or swa_learning_rate is not None
        if when is None and ignored:
            warnings.warn(
                "Without `start_epoch`, `average_period` and "
                "`swa_learning_rate` are ignored: this is the manual mode.",
                stacklevel=2,
            )
            swa_learning_rate = None
        self._plan = functools.partial(
            arguments.plan, *given, swa_learning_rate, schedule
        )
        self._plan(own=own, epochs=1)
        self._unit, self._given, self._preprocess = unit, averages, preprocess
        self._evaluates, self._keep = evaluate, final_weights == "averaged"
        self._filepath, self._verbose = filepath, verbose

    def __copy__(self) -> SWACallback:
        copied = type(self).__new__(type(self))
        copied.__dict__.update(vars(self))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        # An average that has been used says so itself.
        if isinstance(self._refit.get("refit_data"), tf.data.Dataset):
            raise TypeError(
                "`SWACallback` cannot be pickled with a `tf.data.Dataset` as "
                "`refit_data`, which is of this process. Make a new one in the "
                "other process, or give batches of NumPy arrays. Here use "
                "`copy.deepcopy`."
            )
        return dict(vars(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> SWACallback:
        """Shares the model, its variables and the data, as tuners need it."""
        others = (self.model, self._weights, self._variables, self._preprocess)
        for each in (*others, *self._refit.values()):
            memo.setdefault(id(each), each)
        for each in (self._fit_averages, self._best):
            memo[id(each)] = None  # the copy has not been fit
        copied = memo[id(self)] = copy.copy(self)
        copied.__dict__.update(copy.deepcopy(vars(self), memo))
        return copied

    def set_model(self, model: Any) -> None:
        compat.check_keras("model", model)
        super().set_model(model)
        # Not in `on_train_begin`: another callback may have restored the model.
        self._saved = resume.SavedAverage(model, self._variables_to_average)

    def on_train_begin(self, logs: Any = None) -> None:
        self._warned_of_averages = False
        self._undo = overrides.Overrides()
        self._undo.callback(self._saved.detach)
        try:
            self._begin()
        except BaseException:
            self._undo.close()
            raise

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._apply(epoch)
        if not (self._warned_of_averages or self._fit_averages.are_finite()):
            self._warned_of_averages = True
            warnings.warn(
                f"The averages are not all finite after epoch {epoch + 1}.",
                stacklevel=2,
            )

    def on_test_begin(self, logs: Any = None) -> None:
        if self._saved.average is None:  # outside of `fit`
            self._saved.detach()

    on_predict_begin = on_test_begin

    def _begin(self) -> None:
        """Checks the model, and replaces what Keras would not call."""
        model, undo = self.model, self._undo
        undo.begin(model)
        average: Any = self._given or StochasticWeightAveraging()
        self._n_epochs = (getattr(self, "params", None) or {}).get("epochs")
        plan = self._plan(own=average.when, epochs=self._n_epochs)
        self._rate, self._start_epoch = plan.rate, plan.start_epoch
        if self._rate is not None:
            arguments.check_rate_can_be_set(model.optimizer)
        if average.swapped:
            raise RuntimeError(
                f"`fit` was called while the averages of {average.name} are "
                "swapped in, and would train them. Leave `averaged_weights`."
            )
        self._weights = []
        self._results: dict[str, Any] = {}
        self._epoch: int | None = None  # none has begun
        self._when = when = plan.when or average.when
        if when is not None and model.built:  # or the first `apply` does
            average.build(self._variables_to_average())
        undo.replace_schedule(average, plan.when)
        self.averages = average
        self._counted = None if when is None else self._unit
        if self._counted == "epoch" or self._start_epoch is not None:
            average.n_calls = overrides.NOT_STARTED
        elif plan.when is not None:
            average.n_calls = 0
        running = other_callbacks.running_list()
        self._fit_averages = FitAverages(model, average, self._refit)
        if self._best_by is not None:
            self._best = BestAverages(model, *self._best_by)
        self._saved.best = self._best
        self._saved.checkpoints = other_callbacks.checkpoints_of(running, self)
        self._saved.attach(average)
        if self._refit:
            self._refit["refit"] = BatchNormRefit(
                model,
                preprocess=self._preprocess,
                verbose=int(bool(self._verbose)),
            )
        elif self._variables.given != "floating" and lacks_statistics(
            model, self._variables_to_average() if model.built else []
        ):
            warnings.warn(
                "The model has batch-norm layers, whose statistics do not "
                "belong to the averaged weights: give `SWACallback` "
                "`refit_data`, such as the training data, unless all of them "
                "are called with `training=False`.",
                stacklevel=3,
            )
        undo.replace(model, "evaluate", self._validation(running))
        if self._counted == "step":
            undo.replace_train_step(self._averaging_step())
        if running is None:  # the user calls the callbacks
            undo.replace(self, "on_epoch_begin", self._begin_epoch)
            undo.replace(self, "on_train_end", self._finish)
            return
        first = tf.keras.callbacks.LambdaCallback(on_epoch_end=self._report)
        last = tf.keras.callbacks.LambdaCallback(
            on_epoch_begin=self._begin_epoch, on_train_end=self._finish
        )
        others = other_callbacks.prepared(running.callbacks, self._evaluates)
        undo.replace(running, "callbacks", [first, *others, last])

    def _variables_to_average(self) -> list[Any]:
        """The variables to average when `fit` began, which it compiles for."""
        if not self._weights:
            self._weights = self._variables.of(self.model)
        return self._weights

    def _averaging_step(self) -> Callable[..., Any]:
        """Returns the model's train step, followed by `apply`."""
        train_step = self.model.train_step

        def averaging_step(*args: Any, **kwargs: Any) -> Any:
            logs = train_step(*args, **kwargs)
            self.averages.apply(self._variables_to_average())
            return logs

        return averaging_step

    def _begin_epoch(self, epoch: int, logs: Any = None) -> None:
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
        self._fit_averages.forget_statistics()
        self._saved.restorable = False
        rate = None if self._rate is None else self._rate(epoch)
        if rate is not None:
            self.model.optimizer.learning_rate = rate

    def _apply(self, epoch: int | None) -> None:
        """Averages the weights after `epoch`, if that was not done yet."""
        if self._counted != "epoch" or int(self.averages.n_calls) != epoch:
            return
        weights = self._variables_to_average()
        if not variables_lib.all_finite(weights):
            warnings.warn(
                f"Epoch {epoch + 1} is not averaged: its weights are not all "
                "finite.",
                stacklevel=2,
            )
            self.averages.n_calls = epoch + 1
            return
        before = int(self.averages.n_models)
        self.averages.apply(weights)
        n_models = int(self.averages.n_models)
        if n_models > before:
            self._print(f"Epoch {epoch + 1}: averaged {n_models} model(s)")

    def _has_averages_after(self, epoch: int | None) -> bool:
        """Whether there are averages to write, with those of this epoch."""
        self._apply(epoch)
        return bool(self._fit_averages.are_there())

    def _report(self, epoch: int, logs: Any) -> None:
        """Runs before the `on_epoch_end` of every other callback."""
        logs.update(self._results)
        self._results = {}

    def _validation(self, running: Any) -> Callable[..., Any]:
        """Returns an `evaluate` that in `fit` also evaluates the averages."""
        evaluate = self.model.evaluate

        def validation(*args: Any, **kwargs: Any) -> Any:
            if running is None or kwargs.get("callbacks") is not running:
                return evaluate(*args, **kwargs)  # called by the user
            self._apply(self._epoch)
            if self._evaluates == "trained":
                return evaluate(*args, **kwargs)
            if not self._fit_averages.are_there():
                trained = averaged = evaluate(*args, **kwargs)
                if self._best is not None:
                    self._best.check_monitor(_named(averaged))
            elif self._evaluates == "averaged":
                trained = averaged = self._evaluate_averages(
                    evaluate, args, kwargs
                )
            else:
                trained = evaluate(*args, **kwargs)
                # The other callbacks are not called a second time.
                kwargs["callbacks"] = tf.keras.callbacks.CallbackList()
                averaged = self._evaluate_averages(evaluate, args, kwargs)
            self._results = _named(averaged)
            return trained

        return validation

    def _evaluate_averages(
        self, evaluate: Callable[..., Any], args: Any, kwargs: Any
    ) -> dict[str, Any]:
        """Evaluates the averages, and keeps them if they are the best."""
        with self._fit_averages.swapped_in():
            averaged: dict[str, Any] = evaluate(*args, **kwargs)
            if self._best is not None and self._epoch is not None:
                self._best.compare(self._epoch, _named(averaged))
        return averaged

    def _finish(self, logs: Any = None) -> None:
        """Runs after the `on_train_end` of every other callback."""
        with self._undo:
            if self._epoch is None and self._n_epochs:  # resumed after the last
                self._apply(self._n_epochs - 1)
        n_models = int(self.averages.n_models)
        best = None if self._best is None else self._best.found
        found = None
        if not self._fit_averages.are_there():
            found = (
                f"averaged {'not each weight' if n_models else 'nothing'}, as "
                f"training ended before {self._when or 'anything was due'}"
            )
        elif best is None and not self._fit_averages.are_finite():
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
                "`SWACallback` has found no validation of averages: they are "
                f"the last. It looked for {self._best.monitor}.",
                stacklevel=2,
            )
        values = None if best is None else best.values
        with self._fit_averages.swapped_in(self._keep, values):
            if self._filepath is not None:
                whole_files.save_model(self.model, self._filepath)
                self._print(f"The averaged model is in {self._filepath}")
        if self._keep:
            self._print(f"The model is {which}")

    def _print(self, line: str) -> None:
        if self._verbose:
            sys.stdout.write(f"\n{line}\n")


def _named(results: dict[str, Any]) -> dict[str, Any]:
    """Returns figures of the averages by their names in the logs."""
    return {f"swa_val_{name}": value for name, value in results.items()}
