"""The exponential moving average of weights, as TensorFlow's own class."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from swa_tf.averaging import has_begun, v1_graph
from swa_tf.averaging.averaging_schedule import AveragingSchedule
from swa_tf.averaging.decay import DECAY, NUM_UPDATES, float32, of_models
from swa_tf.averaging.update import ListUpdate
from swa_tf.averaging.weight_average import WeightAverage
from swa_tf.support import checks
from swa_tf.support import variables as variables_lib


class ExponentialMovingAverage(WeightAverage):
    """The exponential moving average of weights (EMA).

        average <- average + (1 - decay) * (weight - average)

    It takes the place of `tf.train.ExponentialMovingAverage` by changing one
    import: the same arguments, names and numbers, for variables of every Keras.
    docs/ema.md has both classes side by side.

    >>> variable = tf.Variable(1.0)
    >>> ema = swa_tf.ExponentialMovingAverage(decay=0.75)
    >>> ema.apply([variable])
    >>> _ = variable.assign(2.0)
    >>> ema.apply([variable])
    >>> float(ema.average(variable))
    1.25

    A decay that grows with the number of models, here to at most 0.9:

    >>> def decay(n_models):
    ...     return tf.minimum(1.0 - (1.0 + n_models) ** -0.75, 0.9)
    >>> ema = swa_tf.ExponentialMovingAverage(decay)
    >>> [round(1.0 - float(ema.coefficient(n)), 3) for n in (0, 1, 10, 100)]
    [0.0, 0.405, 0.834, 0.9]

    A variable may join in a later call of `apply`, or be left out of a call.

    Where the average starts: in eager mode at the value that the variable has
    in the first `apply`; in a `tf.function` at the one it has when that is
    traced; in a v1 graph at its initial value, a tensor at zero. This is
    TensorFlow's way. With `warm_up` or `when`, and after `build` or `reset`,
    the first average of each variable is the weight itself, whenever it comes.
    (After `reset` in a v1 graph the averages begin anew from the values at the
    reset, those of tensors from zero.)

    Averages are rounded as by `StochasticWeightAveraging`.

    Args:
        decay: How much of the average an update keeps, in [0, 1): a number, or
            a scalar tensor or variable of a floating-point dtype, read in each
            update. As in TensorFlow, it is rounded to float32 first: 0.999 is
            0.99900001. Or a function, in TensorFlow, of the number of models
            averaged, a float64 scalar tensor: its values, in [0, 1) from 0
            models on, are used in float64. Give this or `half_life`.
        num_updates: A count of training steps: a number, or a scalar tensor or
            variable such as `optimizer.iterations`. The decay is then
            `min(decay, (1 + num_updates) / (10 + num_updates))`.
        zero_debias: Whether averages of tensors, which start at zero, are
            divided by `1 - decay**n` after n updates (Kingma and Ba 2015,
            section 3), or with `warm_up` or `when` by the sum of the weights
            of what was averaged. Only v1 graphs average tensors.
        name: Suffix of the names of the shadow variables.
        half_life: Instead of `decay`, the number of updates, > 0, after which
            half of the average is new: decay = 2^(-1 / half_life), in float64.
        warm_up: With a number g >= 1, the n-th update (from n = 0, the number
            of models averaged) has the decay `min(decay, n / (n + g))`. g = 1
            makes the average the mean of all models, until there are
            1 / (1 - decay); a larger g forgets the first ones sooner; g = 9 is
            the formula of `num_updates` with the average's own count.
        when: As in `StochasticWeightAveraging`.
        device: As in `StochasticWeightAveraging`.
        skip_nonfinite: As in `StochasticWeightAveraging`. Averages that would
            start at a model left out start at the next.

    Raises:
        TypeError, ValueError: If an argument is none of these; `apply` raises
            `ValueError` if a tensor, variable or value of a function is not,
            and its op in a graph `tf.errors.InvalidArgumentError`.

    References:
        `tf.train.ExponentialMovingAverage`. Warm-up is polynomial-decay
        averaging, with eta = g - 1: Shamir and Zhang 2013, Stochastic Gradient
        Descent for Non-smooth Optimization, section 4,
        https://arxiv.org/abs/1212.1824.
    """

    _takes_others = True

    def __init__(
        self,
        decay: Any = None,
        num_updates: Any = None,
        zero_debias: bool = False,
        name: str = "ExponentialMovingAverage",
        *,
        half_life: float | None = None,
        warm_up: float | None = None,
        when: AveragingSchedule | None = None,
        device: str | None = None,
        skip_nonfinite: bool = False,
    ) -> None:
        if (decay is None) == (half_life is None):
            raise ValueError(
                "Exactly one of `decay` and `half_life` must be given. "
                f"Received: decay={decay!r}, half_life={half_life!r}"
            )
        # Untracked: a checkpoint of the average is not one of what it is given.
        untracked = variables_lib.Untracked
        if not callable(decay):
            decay = DECAY.given(decay)
        elif tf.executing_eagerly():
            of_models(decay, 0)  # raises if it is wrong
        self._decay = untracked(decay)
        self._num_updates = untracked(NUM_UPDATES.given(num_updates))
        if half_life is not None:
            half_life = checks.positive("half_life", half_life)
        if warm_up is not None and checks.positive("warm_up", warm_up) < 1.0:
            raise checks.wrong("warm_up", "a number >= 1", warm_up)
        self._zero_debias = checks.boolean("zero_debias", zero_debias)
        self._half_life = half_life
        self._warm_up = warm_up
        self._debiased = untracked({})
        self._debias_variables: list[tf.Variable] = []
        super().__init__(name, when, device, skip_nonfinite=skip_nonfinite)

    def _reset_ops(self) -> list[Any]:
        variables = self._averaged_variables()
        if variables:
            self._checked(variables)
        return [
            self._assign_initial_values(variables),
            *(v.assign(tf.zeros_like(v)) for v in self._debias_variables),
            *super()._reset_ops(),
        ]

    def _check_each_averaged(self, variables: list[Any]) -> list[Any]:
        if self._begun is None:
            return []
        begun = has_begun.read(self._begun, len(self._averages))
        if tf.executing_eagerly():
            have_begun = dict(zip(self._average_of.value, begun.numpy()))
            variables = [v for v in variables if not have_begun[v.ref()]]
        message = (
            f"{self.name} has not averaged each of these variables yet, or "
            f"not since `reset`: {variables_lib.describe(variables)}. Call "
            "`apply` with them first, or swap a list without them."
        )
        if not tf.executing_eagerly():
            begun = tf.gather(begun, self._indices(variables))
            data = [message, "begun:", begun]
            return [tf.debugging.Assert(tf.reduce_all(begun), data)]
        if variables:
            raise RuntimeError(message)
        return []

    def _has_averages_from_the_start(self) -> bool:
        # From initializers, or a checkpoint of TensorFlow's class.
        return self._graph is not None and self._starts_as_tensorflow()

    def coefficient(self, n_models: tf.Tensor) -> tf.Tensor:
        """Returns 1 - decay, or more while `num_updates` or `warm_up` say so.

        >>> ema = swa_tf.ExponentialMovingAverage(0.75, warm_up=1)
        >>> n_models = tf.range(5, dtype=tf.int64)
        >>> [round(float(ema.coefficient(n)), 3) for n in n_models]
        [1.0, 0.5, 0.333, 0.25, 0.25]

        Args:
            n_models: The number of models already averaged: an int64 scalar.
        """
        if self._half_life is not None:
            share = -math.expm1(-math.log(2.0) / self._half_life)
            c = tf.constant(share, tf.float64)
        elif callable(self._decay.value):
            c = 1.0 - of_models(self._decay.value, n_models)
        else:
            # In float32, for the bits of TensorFlow's class.
            decay = tf.convert_to_tensor(float32(self._decay.value))
            c = tf.cast(1.0 - decay, tf.float64)
        if self._num_updates.value is not None:
            n = tf.convert_to_tensor(float32(self._num_updates.value))
            c_n = tf.cast(1.0 - (1.0 + n) / (10.0 + n), tf.float64)
            c = tf.maximum(c, c_n)
        if self._warm_up is not None:
            n = tf.cast(n_models, tf.float64)
            c = tf.maximum(c, self._warm_up / (n + self._warm_up))
        # Where XLA leaves assertions out, a wrong number moves nothing.
        for argument, value in self._unchecked():
            c = tf.where(argument.allows(value), c, tf.zeros_like(c))
        return c

    def _is_of_python(self) -> bool:
        return callable(self._decay.value) or super()._is_of_python()

    def _unchecked(self) -> list[tuple[Any, Any]]:
        """Returns the arguments that an update may find to be wrong."""
        decay, num_updates = self._decay.value, self._num_updates.value
        given = [(DECAY, decay), (NUM_UPDATES, num_updates)]
        return [pair for pair in given if tf.is_tensor(pair[1])]

    def _starts_as_tensorflow(self) -> bool:
        """Whether the first update moves an average that is there before it."""
        return self._when is None and self._warm_up is None

    def _is_first(self, variables: list[Any], n_models: tf.Tensor) -> Any:
        if self._begun is not None:
            begun = has_begun.read(self._begun, len(self._averages))
            return ~tf.gather(begun, self._indices(variables))
        if self._starts_as_tensorflow():
            return False
        return super()._is_first(variables, n_models)

    def _indices(self, variables: list[Any]) -> list[int]:
        """Returns the places in `_begun` of the averages of `_pairs`."""
        place = {key: i for i, key in enumerate(self._average_of.value)}
        return [
            place[variable.ref()]
            for variable in variables
            for _ in variables_lib.components(self.average(variable))
        ]

    def _counts(self) -> list[tf.Variable]:
        counts = super()._counts()
        return counts if self._begun is None else [*counts, self._begun]

    def _make_count(self) -> None:
        super()._make_count()
        self._begun: Any = None
        if self._graph is None:
            with tf.init_scope():
                self._begun = has_begun.made(self._own_name("begun"))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self._begun is not None:
            memo[id(self._begun)] = has_begun.copied(self._begun)
        return super().__deepcopy__(memo)

    def _make_averages(
        self, variables: list[Any], begin: bool, *given: Any
    ) -> None:
        n_before = len(self._averages)
        super()._make_averages(variables, begin, *given)
        if self._begun is None:
            tensors = self._averaged_variables()[n_before:]
            self._debias(v for v in tensors if not isinstance(v, tf.Variable))
            return
        with tf.init_scope():
            n_known = max(n_before, len(self._state.restored))
            joined = self._averaged_variables()[n_known:]
            # A variable made in the present trace has no value yet.
            has_value = tf.compat.v1.is_variable_initialized
            there = [bool(has_value(variable)) for variable in joined]
            if self._state.was_restored:
                # A checkpoint restored before it had averages for them.
                self._assign_initial_values(itertools.compress(joined, there))
            starts = begin and self._starts_as_tensorflow()
            if starts and self._skips and any(there):
                known = [v for v in variables if has_value(v)]
                starts = bool(variables_lib.all_finite(known))
            begun = [starts and is_there for is_there in there]
            has_begun.join(self._begun, begun, n_known)

    def _debias(self, tensors: Iterable[tf.Tensor]) -> None:
        for tensor in tensors if self._zero_debias else ():
            counted = self._starts_as_tensorflow()
            made = v1_graph.DebiasedTensor(self.average(tensor), counted)
            self._debias_variables.extend(made.variables)
            self._debiased.value[tensor.ref()] = made

    def _apply(self, var_list: Iterable[Any] | None) -> Any:
        assertions = []
        if unchecked := self._unchecked():
            # In a scope, to leave the names of the caller's ops as they are.
            with tf.name_scope(self._own_name("checks")):
                for argument, value in unchecked:
                    assertions += argument.check(value)
        with tf.control_dependencies(assertions):
            return super()._apply(var_list)

    def _pairs(self, variables: list[Any]) -> list[tuple[tf.Variable, Any]]:
        debiased = self._debiased.value  # whose `biased` moves instead
        return [
            (debiased[w.ref()].biased if w.ref() in debiased else average, w)
            for average, w in super()._pairs(variables)
        ]

    def _move(self, update: ListUpdate, c: tf.Tensor, n_models: Any) -> Any:
        moved = [super()._move(update, c, n_models)]
        variables, debiased = update.variables, self._debiased.value
        if self._begun is not None:
            # Averages that are swapped in have c = 0, and begin later.
            indices, n_averages = self._indices(variables), len(self._averages)
            moved.append(
                has_begun.begin(self._begun, indices, c > 0, n_averages)
            )
        elif debiased:
            with tf.control_dependencies(moved):
                for key in [v.ref() for v in variables if v.ref() in debiased]:
                    moved += debiased[key].divide(c)
        return tf.group(*moved)

    def _assign_initial_values(self, variables: Iterable[Any]) -> Any:
        """Assigns each average its weight, or 0 to that of a tensor."""
        pairs: list[tuple[Any, Any]] = []
        for variable in variables:
            average: Any = self.average(variable)
            is_tensor = not isinstance(variable, tf.Variable)
            value = tf.zeros_like(average) if is_tensor else variable
            pairs.append((average, value))
        return variables_lib.assign(pairs)
