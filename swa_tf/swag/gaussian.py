"""A Gaussian fitted to the weights that training passes through (SWAG)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from swa_tf.averaging import (
    AveragingSchedule,
    StochasticWeightAveraging,
    WeightAverage,
    rounding,
)
from swa_tf.support import checks, compat
from swa_tf.support import variables as variables_lib


class SWAGaussian(WeightAverage):
    """The mean of all models seen, and how they spread around it (SWAG).

    With c = 1 / (n_models + 1) and d = weight - mean before the update,

        mean     <- mean + c * d
        variance <- variance + c * ((1 - c) * d^2 - variance)
        D[n_models mod rank] <- (1 - c) * d

    After n updates the variance is that of the n models, E[w^2] - E[w]^2, and
    the rows of D are the last `rank` deviations of a weight from the mean that
    includes it. `swa_tf.sampled_weights` draws models from the Gaussian with
    this mean and the covariance

        scale * (diag(variance) + D^T D / (K - 1))      K = min(n_models, rank)

    >>> variable = tf.Variable([0.0, 0.0])
    >>> swag = swa_tf.SWAGaussian(rank=2)
    >>> for value in ([1.0, 5.0], [3.0, 5.0], [8.0, 5.0]):
    ...     _ = variable.assign(value)
    ...     swag.apply([variable])
    >>> swag.average(variable).numpy().tolist()
    [4.0, 5.0]
    >>> round(float(swag.variance(variable)[0]), 4)     # (9 + 1 + 16) / 3
    8.6667
    >>> swag.deviations(variable).numpy().tolist()      # 8 - 4, 3 - 2
    [[4.0, 0.0], [1.0, 0.0]]

    It is used and saved as `StochasticWeightAveraging` is, whose average is
    its mean, to the bit. The paper stores the mean of the squares, from which
    it subtracts the square of the mean. That loses the variance in float32
    where it is less than about 1e-7 of the squared weight, and clips what
    became negative. The form above, which is Welford's, does not, and
    is the same otherwise. Everything is rounded as the mean is.

    Memory: mean and variance, and `rank` copies of the averaged variables, in
    float32 (float64 for float64): 22 copies for the default.

    Args:
        rank: The number of deviations kept, K of the paper: an integer >= 2,
            or 0 for a diagonal covariance (SWAG-Diagonal).
        name: Suffix of the names of the shadow variables.
        when: As in `StochasticWeightAveraging`.
        device: As in `StochasticWeightAveraging`.
        skip_nonfinite: As in `StochasticWeightAveraging`.

    Raises:
        TypeError, ValueError: If an argument is none of these; `apply` and
            `build` raise `ValueError` if the shape of a variable is not known,
            and restoring a checkpoint raises it if that is of another rank.

    References:
        Maddox et al. 2019, A Simple Baseline for Bayesian Uncertainty in Deep
        Learning, sections 3.2 and 3.3, https://arxiv.org/abs/1902.02476.
        Welford 1962 for the variance.
    """

    def __init__(
        self,
        rank: int = 20,
        name: str = "SWAGaussian",
        when: AveragingSchedule | None = None,
        device: str | None = None,
        *,
        skip_nonfinite: bool = False,
    ) -> None:
        self._rank = rank = checks.integer("rank", rank, at_least=0)
        if rank == 1:
            raise checks.wrong("rank", "an integer >= 2, or 0", rank)
        self._variances: list[tf.Variable] = []
        self._deviations: list[tf.Variable] = []
        super().__init__(name, when, device, skip_nonfinite=skip_nonfinite)

    coefficient: Any = StochasticWeightAveraging.coefficient

    def variance(self, var: Any) -> tf.Variable | None:
        """Returns the variable that holds the variance of `var`.

        >>> variable = tf.Variable(1.0)
        >>> swag = swa_tf.SWAGaussian()
        >>> for value in (1.0, 5.0):
        ...     _ = variable.assign(value)
        ...     swag.apply([variable])
        >>> float(swag.variance(variable))
        4.0

        Args:
            var: As in `average`.

        Returns:
            A variable of the shape and dtype of the average; None if `var` is
            not averaged.

        Raises:
            TypeError: As `average` does.
        """
        return self._beside(var, self._variances)

    def deviations(self, var: Any) -> tf.Variable | None:
        """Returns the variable that holds the last deviations of `var`.

        >>> variable = tf.Variable([1.0, 2.0])
        >>> swag = swa_tf.SWAGaussian(rank=20)
        >>> swag.apply([variable])
        >>> swag.deviations(variable).shape
        TensorShape([20, 2])

        Args:
            var: As in `average`.

        Returns:
            A variable of shape [rank, *shape of `var`] and the dtype of the
            average, whose rows are zeros until they are written, the first
            again after the last; None if `var` is not averaged.

        Raises:
            TypeError: As `average` does.
        """
        return self._beside(var, self._deviations)

    def _beside(self, var: Any, kept: list[tf.Variable]) -> tf.Variable | None:
        average = self.average(var)
        pairs = zip(self._averages, kept)
        return next((own for each, own in pairs if each is average), None)

    def _layout(self) -> dict[str, Any]:
        return {"rank": self._rank}

    def _checked(self, var_list: Any) -> list[Any]:
        variables = super()._checked(var_list)
        unknown = [v for v in variables if not v.shape.is_fully_defined()]
        if unknown:
            raise variables_lib.wrong("variables of known shapes", unknown)
        return variables

    def _make_averages(
        self, variables: list[Any], begin: bool, *given: Any
    ) -> None:
        super()._make_averages(variables, begin, *given)
        # Each from where an interrupted call has left it.
        for average in self._averages[len(self._variances) :]:
            made = self._zeros(average, "variance", average.shape)
            self._variances.append(made)
        for average in self._averages[len(self._deviations) :]:
            shape = [self._rank, *average.shape]
            made = self._zeros(average, "deviations", shape)
            self._deviations.append(made)

    def _zeros(self, average: Any, name: str, shape: Any) -> tf.Variable:
        """Returns a new variable of zeros on the devices of `average`."""
        strategy = variables_lib.strategy_of(average)
        with tf.init_scope():
            place = strategy.scope() if strategy else tf.device(average.device)
            with place:
                return tf.compat.v1.Variable(
                    tf.zeros(shape, average.dtype.base_dtype),
                    trainable=False,
                    use_resource=True,
                    name=f"{compat.variable_name(average)}/{name}",
                )

    def _reset_ops(self) -> list[Any]:
        spread = [*self._variances, *self._deviations]
        zeroed = [v.assign(tf.zeros(v.shape, v.dtype)) for v in spread]
        return [*zeroed, *super()._reset_ops()]

    def _spread(self, variables: list[Any]) -> list[tuple[Any, Any]]:
        """Returns variance and deviations, in the order of `_pairs`."""
        kept = zip(self._variances, self._deviations)
        spread = dict(zip(self._average_of.value, kept))
        pairs: list[tuple[Any, Any]] = []
        for variable in variables:
            pairs += zip(*map(variables_lib.components, spread[variable.ref()]))
        return pairs

    def _snapshot(self, variables: list[Any]) -> Callable[[], None]:
        spread = self._spread(variables)
        restore = super()._snapshot(variables)
        restore_variances = variables_lib.snapshot([v for v, _ in spread])
        rows: list[tuple[Any, tf.Tensor]] = []
        if self._rank:
            # Not all of the deviations, which would then be copied.
            row = self._row(variables_lib.read(self.n_models))
            rows = [(each, each.sparse_read(row)) for _, each in spread]

        def restore_all() -> None:
            restore()
            restore_variances()
            for deviations, value in rows:
                _write_row(deviations, row, value)

        return restore_all

    def _row(self, n_models: tf.Tensor) -> tf.Tensor:
        """Returns which row of the deviations the next update writes."""
        return tf.math.floormod(n_models, self._rank)

    def _move(self, update: Any, c: tf.Tensor, n_models: tf.Tensor) -> Any:
        variables = update.variables
        pairs = zip(self._pairs(variables), self._spread(variables))
        settings = rounding.settings(c, n_models)
        _, _, zero = settings
        updated: list[Any] = []
        for (average, weight), (variance, deviations) in pairs:
            value = variables_lib.read(weight)
            with tf.device(average.device):
                mean = variables_lib.read(average)
                difference = tf.cast(value, average.dtype) - mean
                deviation = tf.cast(1.0 - c, average.dtype) * difference
                product = deviation * difference
                if zero is not None:
                    product = rounding.rounded(product, zero)
                before = variables_lib.read(variance)
                moved = rounding.moved(before, product, *settings)
                updated.append(variables_lib.write(variance, moved))
                if self._rank:
                    row = self._row(n_models)
                    # c is 0 where averages are swapped in: nothing moves.
                    old = deviations.sparse_read(row)
                    value = tf.where(c > 0.0, deviation, old)
                    updated.append(_write_row(deviations, row, value))
        with tf.control_dependencies([tf.group(*updated)]):  # of the old mean
            return super()._move(update, c, n_models)


def _write_row(deviations: Any, row: tf.Tensor, value: tf.Tensor) -> Any:
    """Writes one row, and copies no other; in a graph, returns the op."""
    return tf.raw_ops.ResourceScatterUpdate(
        resource=deviations.handle, indices=row, updates=value
    )
