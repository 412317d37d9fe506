"""Weight averaging in `model.fit`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from swa_tf import _checks, _files, _fit, _parts
from swa_tf.averaging import StochasticWeightAveraging, WeightAverage
from swa_tf.refit import BatchNormRefit
from swa_tf.schedules import per_epoch
from swa_tf.swapping import averaged_weights
from swa_tf.timing import AveragingSchedule

# The calls of `apply` before averaging may start are counted from here.
_LONG_BEFORE = -(2**62)


class SWACallback(tf.keras.callbacks.Callback):
    """Averages weights in `model.fit`, and leaves the averaged model.

    >>> x, y = tf.ones([8, 1]), tf.ones([8, 1])
    >>> model = tf.keras.Sequential([tf.keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> swa = swa_tf.SWACallback(start_epoch=2, verbose=0)
    >>> _ = model.fit(x, y, epochs=5, verbose=0, callbacks=[swa])
    >>> int(swa.averages.n_models)
    3

    Averaging: with `start_epoch` alone, after each epoch from that one on, or
    after every `average_period`-th. With `unit="step"`, after train steps,
    inside the compiled train step: at no cost to the host, and exactly so with
    `steps_per_execution` and `jit_compile`. Each `fit` starts a new average,
    unless `averages` was given, which goes on.

    Validation: the logs get `swa_val_loss` and so on beside `val_loss`, for
    every callback, wherever it is in the list. Before the first average they
    are those of the trained model, which `fit` would leave then. What else you
    `evaluate` or `predict` in training is of the trained weights.

    At the end the model has its averaged weights and, with `refit_data`,
    batch-norm statistics for them. An exception, in training or here, leaves
    the trained weights and statistics. It comes after all other callbacks, so
    also after weights that `EarlyStopping` restores.

    `BackupAndRestore` saves and restores the average with the model (which
    must be built), as does all that saves the model in training.

    Args:
        start_epoch: The first epoch whose weights are averaged, counted from
            0: an integer >= 0. Give this or `start_step`; or neither, with
            `averages`: then its own `when` decides, or you call its `apply`
            yourself (manual mode), and the callback does the rest.
        average_period: From one average to the next, in `unit`s, counted
            from the start: an integer >= 1.
        unit: "epoch" or "step"; None is "step" with `start_step`, otherwise
            "epoch". With `start_epoch` and "step", the first step of that
            epoch is the first to be averaged.
        start_step: The first train step (batch) whose weights are averaged,
            counted from 0 at the beginning of `fit`.
        swa_learning_rate: The constant rate from `start_epoch` on, a finite
            float >= 0. Before, the rate is left to whoever sets it (warm-up,
            `LearningRateScheduler`, `ReduceLROnPlateau`); from then on it is
            set at the beginning of each epoch, last. Rates by steps: give the
            optimizer a schedule of `swa_tf.schedules`.
        schedule: Instead of it: a function from the epoch to the rate of all
            epochs, for example a schedule of `swa_tf.schedules` in epochs.
        refit_data: Batches for `swa_tf.refit_batch_norm`, before the averaged
            model is evaluated and at the end. Training data without
            augmentation; a model with batch normalization needs it.
        refit_steps: How many of them to take; None takes all.
        evaluate: What validation is of: "trained"; "averaged", then `val_...`
            and `swa_val_...` are both of the averaged model (and it is what
            the model holds in the `on_test_...` hooks of callbacks); or
            "both", which validates twice.
        averages: A `WeightAverage` to use instead of a new
            `StochasticWeightAveraging`.
        final_weights: What the model is left with: "averaged" or "trained".
        filepath: Where to write the averaged model at the end: a `.keras`,
            `.h5` or `.weights.h5` file, or, without a suffix, a SavedModel for
            serving. What is there is replaced when the new one is complete.
        verbose: 1 prints a line for each epoch averaged and at the end, 0
            nothing.

    Raises:
        TypeError, ValueError: If an argument is none of the above, or does
            not go with another; in `fit`, before training, if the rate is to
            be set and the optimizer's cannot be.

    Source: the automatic and manual modes are those of
    torchcontrib.optim.SWA; Izmailov et al. 2018,
    https://arxiv.org/abs/1803.05407, algorithm 1.
    """

    def __init__(
        self,
        start_epoch: int | None = None,
        average_period: int = 1,
        unit: str | None = None,
        *,
        start_step: int | None = None,
        swa_learning_rate: float | None = None,
        schedule: Callable[[int], Any] | None = None,
        refit_data: Iterable[Any] | None = None,
        refit_steps: int | None = None,
        evaluate: str = "both",
        averages: WeightAverage | None = None,
        final_weights: str = "averaged",
        filepath: str | os.PathLike[str] | None = None,
        verbose: int = 1,
    ) -> None:
        super().__init__()
        if unit is None:
            unit = "epoch" if start_step is None else "step"
        _checks.choice("unit", unit, ("epoch", "step"))
        _checks.choice("evaluate", evaluate, ("averaged", "trained", "both"))
        _checks.choice("final_weights", final_weights, ("averaged", "trained"))
        _check_averages(averages)
        if filepath is not None:
            _files.check_model_path("filepath", filepath)
        if refit_data is not None:
            batches = (refit_data, refit_steps, "refit_data", "refit_steps")
            _checks.batches(*batches)
            _checks.enough_batches(*batches, again=evaluate != "trained")
        elif refit_steps is not None:
            raise ValueError(
                "`refit_data` must be given for `refit_steps` to be of use. "
                f"Received: {refit_steps=} alone"
            )
        self._given = averages
        self._unit = unit
        self._start_epoch = start_epoch
        self._when = _schedule(start_epoch, start_step, average_period, unit)
        when = self._when or getattr(averages, "when", None)
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
        first_epoch = when.start if when and unit == "epoch" else start_epoch
        self._rate = _rates(swa_learning_rate, schedule, first_epoch)
        self._refit: dict[str, Any] = {
            "refit_data": refit_data,
            "refit_steps": refit_steps,
        }
        self._evaluates = evaluate
        self._keep = final_weights == "averaged"
        self._filepath = filepath
        self._verbose = verbose
        self._results: dict[str, Any] = {}
        self._reporter = tf.keras.callbacks.LambdaCallback(
            on_epoch_end=self._report
        )
        self._training = False
        self._averages: Any = None
        self._refit_of_model: Any = None

    @property
    def averages(self) -> WeightAverage | None:
        """The average of the present `fit` or of the last; None before.

        >>> swa_tf.SWACallback(start_epoch=5).averages is None
        True
        """
        return self._averages

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        # Here, for Keras may restore before our `on_train_begin`, and other
        # callbacks may change `model.history`.
        self._saved = _fit.Saved(model)
        self._history = getattr(model, "history", None)

    def on_train_begin(self, logs: Any = None) -> None:
        self._weights: list[Any] = []
        try:
            self._averages = self._average_to_use()
        except BaseException:
            self._saved.detach()
            raise
        if self._refit["refit_data"] is None and self._has_batch_norm():
            warnings.warn(
                "The model has batch-norm layers, whose statistics do not "
                "belong to the averaged weights: give `SWACallback` "
                "`refit_data`, such as the training data.",
                stacklevel=2,
            )
        self._epoch: int | None = None
        self._warned_of_averages = False
        self._reset_calls()
        try:
            self._saved.attach(self._averages)
            self._install()
        except BaseException:
            self._release()
            raise
        self._training = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._end_epoch()
        if not (self._warned_of_averages or self._are_averages_finite()):
            self._warned_of_averages = True
            warnings.warn(
                f"The averages are not all finite after epoch {epoch + 1}.",
                stacklevel=2,
            )

    def on_test_begin(self, logs: Any = None) -> None:
        if not self._training:  # the user's `evaluate` of another time
            self._saved.detach()

    def on_predict_begin(self, logs: Any = None) -> None:
        self.on_test_begin()

    def _average_to_use(self) -> WeightAverage:
        """That of this `fit`, or an error if it is not for this model."""
        if self._rate is not None:
            _fit.check_rate_can_be_set(getattr(self.model, "optimizer", None))
        last = _fit.last_callback(self, self._history)
        hook: Any = getattr(vars(last).get("on_train_end"), "__self__", None)
        if hook is not None and hook.params is self.params:
            raise ValueError("`fit` takes one `SWACallback`. Received: two")
        average = self._given
        if average is None:
            average = StochasticWeightAveraging()
        if average.swapped:
            raise RuntimeError(
                f"`fit` was called while the averages of {average.name} are "
                "swapped in: it would train them, and lose the training when "
                "`averaged_weights` ends. Leave it first."
            )
        when = self._when or average.when
        if when is not None and self.model.built:
            # Otherwise the first batch builds it, or the user says what of it.
            average.build(self._trainable_variables())
        self._when_before, average.when = average.when, when
        return average

    def _reset_calls(self) -> None:
        """Counts the calls of `apply` anew: epochs, or steps from the start."""
        automatic = self._averages.when is not None
        self._counts_epochs = automatic and self._unit == "epoch"
        self._counts_steps = automatic and self._unit == "step"
        if self._counts_epochs or self._start_epoch is not None:
            self._averages.n_calls = _LONG_BEFORE
        elif self._when is not None:
            self._averages.n_calls = 0

    def _trainable_variables(self) -> list[Any]:
        """Those when `fit` began: it trains what it was compiled for."""
        if not self._weights:
            self._weights = list(self.model.trainable_variables)
        return self._weights

    def _install(self) -> None:
        """Takes part in what Keras tells no callback, or not in this order."""
        self._overrides = _fit.Overrides(self.model, self._release)
        self._overrides.replace(self.model, "evaluate", self._validation())
        if self._counts_steps:
            self._overrides.replace_train_step(self._averaging_step())
        last = _fit.last_callback(self, self._history)
        self._overrides.replace(last, "on_epoch_begin", self._begin_epoch)
        self._overrides.replace(last, "on_train_end", self._finish)

    def _release(self) -> None:
        self._saved.detach()
        self._averages.when = self._when_before

    def _averaging_step(self) -> Callable[..., Any]:
        """The model's train step, and `apply` after it."""
        train_step = self.model.train_step

        def averaging_step(*args: Any, **kwargs: Any) -> Any:
            logs = train_step(*args, **kwargs)
            self._averages.apply(self._trainable_variables())
            return logs

        return averaging_step

    def _begin_epoch(self, epoch: int, logs: Any = None) -> None:
        """Comes after every other callback's `on_epoch_begin`."""
        if self._counts_epochs:
            if self._epoch is None:
                self._warn_of_epochs_again(epoch)
            self._catch_up(epoch)
            self._averages.n_calls = epoch
        elif self._start_epoch is not None and epoch >= self._start_epoch:
            self._averages.n_calls = max(int(self._averages.n_calls), 0)
        self._epoch = epoch
        self._saved.restorable = False
        self._results.clear()
        rate = None if self._rate is None else self._rate(epoch)
        if rate is not None:
            self.model.optimizer.learning_rate = rate

    def _warn_of_epochs_again(self, epoch: int) -> None:
        """Keras 3 writes weights and epoch one after the other."""
        restored = int(self._averages.n_calls)
        if restored > epoch:
            warnings.warn(
                f"The backup holds the weights after epoch {restored}, and "
                f"Keras goes on with epoch {epoch + 1}: its writing was cut "
                "short, and epochs are trained twice.",
                stacklevel=2,
            )

    def _catch_up(self, epoch: int) -> None:
        """After a backup that was made before our turn in the last epoch."""
        if self._counts_epochs and int(self._averages.n_calls) == epoch - 1:
            self._apply(epoch - 1)

    def _end_epoch(self) -> None:
        """Comes before the validation, or else with `on_epoch_end`."""
        if self._counts_epochs and int(self._averages.n_calls) == self._epoch:
            self._apply(self._epoch)

    def _apply(self, epoch: int) -> None:
        weights = self._trainable_variables()
        if not _are_finite(weights):
            warnings.warn(
                f"Epoch {epoch + 1} is not averaged: its weights are not all "
                "finite.",
                stacklevel=2,
            )
            self._averages.n_calls = epoch + 1
            return
        before = int(self._averages.n_models)
        self._averages.apply(weights)
        n_models = int(self._averages.n_models)
        if n_models > before:
            self._print(f"Epoch {epoch + 1}: averaged {n_models} model(s)")

    def _validation(self) -> Callable[..., Any]:
        """`evaluate` of the model, and in the validation of `fit` also ours."""
        evaluate = self.model.evaluate

        def validation(*args: Any, **kwargs: Any) -> Any:
            callbacks = getattr(kwargs.get("callbacks"), "callbacks", [])
            if not any(each is self for each in callbacks):
                return evaluate(*args, **kwargs)  # called by the user
            self._end_epoch()
            if self._evaluates == "trained":
                return evaluate(*args, **kwargs)
            if callbacks[0] is not self._reporter:
                callbacks.insert(0, self._reporter)
            if not self._has_averages():
                trained = averaged = evaluate(*args, **kwargs)
            elif self._evaluates == "averaged":
                with self._swapped_in():
                    trained = averaged = evaluate(*args, **kwargs)
            else:
                trained = evaluate(*args, **kwargs)
                # Again, with nobody else to hear of it.
                kwargs["callbacks"] = tf.keras.callbacks.CallbackList()
                with self._swapped_in():
                    averaged = evaluate(*args, **kwargs)
            self._results.update(
                {f"swa_val_{name}": value for name, value in averaged.items()}
            )
            return trained

        return validation

    def _report(self, epoch: int, logs: Any) -> None:
        logs.update(self._results)

    def _swapped_in(self, keep: bool = False) -> Any:
        refit: dict[str, Any] = {}
        if self._refit["refit_data"] is not None and self._has_batch_norm():
            held = self._refit_of_model
            if held is None or held.model is not self.model:
                held = self._refit_of_model = BatchNormRefit(self.model)
            refit = {**self._refit, "refit": held}
        return averaged_weights(self._averages, self.model, keep=keep, **refit)

    def _has_averages(self) -> bool:
        """Whether there is one of each weight that would be swapped."""
        averages: Any = self._averages
        swapped = [weight for weight, _ in self._pairs()]
        try:
            averages.assert_averaged(swapped or None)
        except RuntimeError:
            return False
        return True

    def _are_averages_finite(self) -> bool:
        return _are_finite([average for _, average in self._pairs()])

    def _pairs(self) -> list[tuple[Any, Any]]:
        """The weights of the model that have an average, each with its own."""
        averages: Any = self._averages
        pairs = [(w, averages.average(w)) for w in _parts.weights(self.model)]
        return [pair for pair in pairs if pair[1] is not None]

    def _has_batch_norm(self) -> bool:
        return bool(_parts.batch_norm_layers(self.model, trainable=True))

    def _finish(self, logs: Any = None) -> None:
        """Comes after every other callback's `on_train_end`."""
        if self._epoch is None:  # resumed after the last epoch
            self._catch_up(self.params["epochs"])
        self._training = False
        self._overrides.undo()
        n_models = int(self._averages.n_models)
        if not self._has_averages():
            averaged = "not each weight" if n_models else "nothing"
            warnings.warn(
                f"`SWACallback` averaged {averaged}, as training ended before "
                f"{self._when or 'anything was due'}: the model keeps its "
                "trained weights.",
                stacklevel=2,
            )
            return
        if not self._are_averages_finite():
            warnings.warn(
                "`SWACallback` found averages that are not all finite: the "
                "model keeps its trained weights.",
                stacklevel=2,
            )
            return
        with self._swapped_in(keep=self._keep):
            if self._filepath is not None:
                _files.save_model(self.model, self._filepath)
                self._print(f"The averaged model is in {self._filepath}")
        if self._keep:
            self._print(f"The model is the average of {n_models} model(s)")

    def _print(self, line: str) -> None:
        if self._verbose:
            sys.stdout.write(f"\n{line}\n")


def _schedule(
    start_epoch: Any, start_step: Any, average_period: Any, unit: str
) -> AveragingSchedule | None:
    """When to call `apply` in `unit`s; None where nothing says so."""
    starts = {"start_epoch": start_epoch, "start_step": start_step}
    given = {k: v for k, v in starts.items() if v is not None}
    if len(given) > 1:
        raise ValueError(
            "Only one of `start_epoch` and `start_step` must be given. "
            f"Received: {start_epoch=}, {start_step=}"
        )
    for name, start in given.items():
        _checks.integer(name, start, at_least=0)
    _checks.integer("average_period", average_period, at_least=1)
    if start_step is not None and unit != "step":
        raise ValueError(
            f'`start_step` goes with unit="step". Received: {unit=}'
        )
    if not given:
        return None
    # The steps before the first of `start_epoch` count below 0.
    start = 0 if unit == "step" and start_step is None else max(given.values())
    return AveragingSchedule(start, average_period)


def _rates(
    swa_learning_rate: Any, schedule: Any, first_epoch: int | None
) -> Callable[[int], float | None] | None:
    """The rate to set for an epoch; None, or a None, leaves it alone."""
    if schedule is not None:
        if swa_learning_rate is not None:
            raise ValueError(
                "Only one of `swa_learning_rate` and `schedule` must be given. "
                f"Received: {swa_learning_rate=}, {schedule=}"
            )
        rate_of = per_epoch(schedule)
        return lambda epoch: _rate_of_schedule(rate_of, epoch)
    if swa_learning_rate is None:
        return None
    rate = _checks.real("swa_learning_rate", swa_learning_rate)
    if first_epoch is None:
        raise ValueError(
            "`swa_learning_rate` goes with `start_epoch`: it is set at the "
            "beginning of epochs. For a rate by steps give the optimizer "
            "`swa_tf.schedules.SWALearningRate`. "
            f"Received: {swa_learning_rate=}"
        )
    return lambda epoch: rate if epoch >= first_epoch else None


def _are_finite(variables: list[Any]) -> bool:
    return all(tf.reduce_all(tf.math.is_finite(v)) for v in variables)


def _check_averages(averages: Any) -> None:
    if averages is not None and not isinstance(averages, WeightAverage):
        raise TypeError(
            "`averages` must be a `WeightAverage`, such as "
            "`StochasticWeightAveraging()`, or None. "
            f"Received: averages={averages!r}"
        )


def _rate_of_schedule(rate_of: Callable[[int], float], epoch: int) -> Any:
    try:
        rate: Any = rate_of(epoch)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`schedule` must give a number for epoch {epoch}: {error}"
        ) from error
    return _checks.real(f"schedule({epoch})", rate)
