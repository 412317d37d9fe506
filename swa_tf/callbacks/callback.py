"""The Keras callback that averages weights in `model.fit`."""

from __future__ import annotations

import copy
import functools
import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from swa_tf.averaging import WeightAverage, check_average
from swa_tf.callbacks import arguments, resume
from swa_tf.callbacks.fit_run import FitRun
from swa_tf.support import atomic_files, checks, compat


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
        self._run: Any = None  # the `FitRun` of the present or last `fit`
        if unit is None:
            unit = "epoch" if start_step is None else "step"
        checks.choice("unit", unit, ("epoch", "step"))
        checked_variables = arguments.Variables(variables, var_list)
        checks.choice("evaluate", evaluate, ("averaged", "trained", "both"))
        checks.choice("final_weights", final_weights, ("averaged", "trained"))
        if averages is not None:
            check_average("averages", averages)
        if filepath is not None:
            atomic_files.check_model_path("filepath", filepath)
        refit = arguments.refit_arguments(
            refit_data, refit_steps, preprocess, again=evaluate != "trained"
        )
        if checks.boolean("restore_best_averages", restore_best_averages):
            leaves = final_weights == "averaged" or filepath is not None
            arguments.check_best(monitor, mode, evaluate, leaves)
        own = getattr(averages, "when", None)
        manual = start_epoch is None and start_step is None and own is None
        if manual and averages is None:
            raise ValueError(
                "`start_epoch` or `start_step` must be given, or `averages`, "
                "which has a `when` or whose `apply` you call. Received none"
            )
        if manual and (average_period != 1 or swa_learning_rate is not None):
            warnings.warn(
                "Without `start_epoch`, `average_period` and "
                "`swa_learning_rate` are ignored: this is the manual mode.",
                stacklevel=2,
            )
            swa_learning_rate = None
        given = start_epoch, start_step, average_period, unit
        plan = functools.partial(
            arguments.plan, *given, swa_learning_rate, schedule
        )
        plan(own=own, epochs=1)
        self._settings = arguments.Settings(
            plan=plan,
            unit=unit,
            variables=checked_variables,
            refit=refit,
            preprocess=preprocess,
            evaluate=evaluate,
            averages=averages,
            keep=final_weights == "averaged",
            filepath=filepath,
            best_by=(monitor, mode) if restore_best_averages else None,
            verbose=checks.verbosity(verbose),
        )

    def __copy__(self) -> SWACallback:
        copied = type(self).__new__(type(self))
        copied.__dict__.update(vars(self))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        # An average that has been used says so itself.
        if isinstance(self._settings.refit.get("refit_data"), tf.data.Dataset):
            raise TypeError(
                "`SWACallback` cannot be pickled with a `tf.data.Dataset` as "
                "`refit_data`, which is of this process. Make a new one in the "
                "other process, or give batches of NumPy arrays. Here use "
                "`copy.deepcopy`."
            )
        return dict(vars(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> SWACallback:
        """Shares the model, its variables and the data, as tuners need it."""
        settings = self._settings
        others = (self.model, settings.variables, settings.preprocess)
        for each in (*others, *settings.refit.values()):
            memo.setdefault(id(each), each)
        memo[id(self._run)] = None  # the copy has not been fit
        copied = memo[id(self)] = copy.copy(self)
        copied.__dict__.update(copy.deepcopy(vars(self), memo))
        return copied

    def set_model(self, model: Any) -> None:
        compat.check_keras("model", model)
        super().set_model(model)
        # Not in `on_train_begin`: another callback may have restored the model.
        self._saved = resume.SavedAverage(
            model, functools.partial(self._settings.variables.of, model)
        )

    def on_train_begin(self, logs: Any = None) -> None:
        n_epochs = (getattr(self, "params", None) or {}).get("epochs")
        run = FitRun(self, self._settings, self._saved, n_epochs)
        self._run, self.averages = run, run.averages

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._run.is_alone:
            self._run.begin_epoch(epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._run.end_epoch(epoch)

    def on_train_end(self, logs: Any = None) -> None:
        if self._run.is_alone:
            self._run.finish()

    def on_test_begin(self, logs: Any = None) -> None:
        if self._saved.average is None:  # outside of `fit`
            self._saved.detach()

    on_predict_begin = on_test_begin
