"""Averages of weights: the one equation and the classes that choose its c.

average <- average + c * (weight - average)
"""

from __future__ import annotations

import abc
import functools
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from swa_tf import _functions, _shadows, _state, _updates, _var_lists
from swa_tf.support import stack
from swa_tf.support import variables as variables_lib
from swa_tf.timing import AveragingSchedule

ONE_AT_A_TIME = threading.RLock()
"""What changes averages, or swaps them in, waits for it.

Two threads that read a count, and write what they have read plus one, count
once; and one that swaps while another averages gives it averages for weights.
"""


class WeightAverage(tf.Module, metaclass=abc.ABCMeta):
    """Keeps an average of each of a list of variables.

    The base of every average in this library. It makes the shadow variables,
    moves them and counts; a subclass says only how far they move:

        average <- average + c(n) * (weight - average)

    where n is the number of models already averaged, and the first update
    makes the average equal to the weight whatever c is. A shadow variable
    holds the average itself, in at least float32: a float16 or bfloat16
    average stops moving once an update is less than half a unit in its last
    place. See `StochasticWeightAveraging` for how an average is used.

    A `copy.deepcopy` has averages and counts of its own, not swapped in, of
    the same variables; or of their copies, where these were copied in the same
    call. (Keras copies models by making them anew, and nothing knows then
    which variable is the copy of which.)
    """

    # Whether later calls of `apply` may name other variables than the first.
    _takes_others = False

    def __init__(
        self,
        name: str,
        when: AveragingSchedule | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(name, (str, type(None))):
            raise TypeError(f"`name` must be a string. Received: {name=}")
        variables_lib.check_device(device)
        self._name = name
        self._device = device
        self._averages: list[tf.Variable] = []
        self._average_of = variables_lib.Untracked({})
        self._functions = _functions.Functions()
        self._pace = _updates.Pace()
        self._when = _checked_when(when)
        self._n_calls: Any = None
        self._make_count()

    @property
    def n_models(self) -> tf.Variable:
        """The number of models averaged: an int64 scalar `tf.Variable`.

        >>> int(swa_tf.StochasticWeightAveraging().n_models)
        0
        """
        return variables_lib.components(self._n_models)[0]

    @property
    def when(self) -> AveragingSchedule | None:
        """Which calls of `apply` average; None for each of them.

        Set it before `apply` is traced: a compiled function keeps the schedule
        that it was traced with.

        >>> swa_tf.StochasticWeightAveraging().when is None
        True
        """
        return self._when

    @when.setter
    def when(self, when: AveragingSchedule | None) -> None:
        self._when = _checked_when(when)
        self._functions = _functions.Functions()  # they keep the old one
        if when is not None and self._n_calls is None:
            self._n_calls = self._counter("n_calls")

    @property
    def n_calls(self) -> tf.Variable | None:
        """The number of calls of `apply`, an int64 scalar `tf.Variable`.

        Those that were not due included; assigning an integer counts on from
        there. None where there is no `when`, and each call averages.

        >>> when = swa_tf.AveragingSchedule(start=10)
        >>> int(swa_tf.StochasticWeightAveraging(when=when).n_calls)
        0
        """
        if self._when is None:
            return None
        return variables_lib.components(self._n_calls)[0]

    @n_calls.setter
    def n_calls(self, n_calls: int) -> None:
        self._n_calls.assign(n_calls)

    @property
    def swapped(self) -> bool:
        """Whether `swa_tf.averaged_weights` has swapped the averages in.

        >>> swa_tf.StochasticWeightAveraging().swapped
        False
        """
        return self._state.swapped

    def _mark_swapped(self, swapped: bool) -> None:
        # No setter: TensorFlow's modules leave out one that changes nothing,
        # such as the one that finishes what an interrupt left half done.
        self._state.set(swapped)

    @property
    def averaged(self) -> list[tuple[str, tf.Variable]]:
        """The averages, each with the name of its variable, in their order.

        Empty before the first `apply` or `build`.

        >>> swa = swa_tf.StochasticWeightAveraging()
        >>> swa.apply([tf.Variable(1.0, name="w")])
        >>> [(name, float(average)) for name, average in swa.averaged]
        [('w', 1.0)]
        """
        return list(zip(self._state.names, self._averages))

    def build(self, var_list: Iterable[Any]) -> None:
        """Makes the shadow variables of `var_list` without averaging.

        The first `apply` does this by itself. Call `build` where there is
        none: to evaluate the averages of a checkpoint in a process that does
        not train.

        >>> variable = tf.Variable([1.0, 2.0])
        >>> swa = swa_tf.StochasticWeightAveraging()
        >>> swa.build([variable])
        >>> swa.average(variable).numpy().tolist(), int(swa.n_models)
        ([1.0, 2.0], 0)

        Args:
            var_list: As in `apply`, and in the same order.

        Raises:
            TypeError, ValueError: As `apply` does.
        """
        self._make_averages(self._checked(var_list))

    @tf.autograph.experimental.do_not_convert  # or a trace takes four times
    def apply(self, var_list: Iterable[Any] | None = None) -> Any:
        """Averages the present values of `var_list` in, where it is due.

        The first call makes a shadow variable of each, equal to the variable;
        each later call takes the same variables. Without a schedule `when`
        each call averages; with one the calls are counted, and those that are
        due average. Works in eager mode, in `tf.function`, in a v1 graph, and
        under `tf.distribute` in replica and cross-replica context (in replica
        context not inside `tf.cond`, where TensorFlow has no `merge_call`: let
        `when` decide).

        >>> variable = tf.Variable(1.0)
        >>> swa = swa_tf.StochasticWeightAveraging()
        >>> for value in (1.0, 2.0, 6.0):
        ...     _ = variable.assign(value)
        ...     swa.apply([variable])
        >>> float(swa.average(variable))
        3.0

        Args:
            var_list: Variables of Keras 2, tf_keras or Keras 3 and
                `tf.Variable`s, mixed as they come, of dtype float16,
                bfloat16, float32 or float64 and any shape. In a v1 graph also
                tensors. None takes the v1 graph's trainable variables.

        Returns:
            In a graph the op that updates the averages, in eager mode None.
            (A `tf.function` runs it anyway, and cannot return it.)

        Raises:
            TypeError: If `var_list` is not a list, or holds anything but
                floating-point variables.
            ValueError: If `var_list` is empty, is None where there is no v1
                graph, names a variable twice, is not the list of the first
                call or of the checkpoint restored, or holds a variable whose
                shape has changed, or of another strategy than that in whose
                scope this is.
            RuntimeError: If the averages are swapped in. A compiled
                function, traced before, raises
                `tf.errors.InvalidArgumentError`. Also in a function that a
                coordinator of parameter servers schedules on its workers.
        """
        if tf.distribute.has_strategy():
            _var_lists.require_coordinator()
            replica_context = tf.distribute.get_replica_context()
            if replica_context is not None:
                return replica_context.merge_call(
                    lambda strategy, averages: _apply_merged(
                        strategy, averages, var_list
                    ),
                    args=(self,),
                )
        return self._apply(var_list)

    def average(self, var: Any) -> tf.Variable | None:
        """The variable that holds the average of `var`.

        >>> variable = tf.Variable(1.0)
        >>> swa = swa_tf.StochasticWeightAveraging()
        >>> swa.average(variable) is None
        True
        >>> swa.apply([variable])
        >>> swa.average(variable).trainable
        False

        Args:
            var: A variable of `var_list`: the Keras variable or the
                `tf.Variable` under it; in a v1 graph also a tensor.

        Returns:
            A non-trainable variable of the same shape, in float64 for a
            float64 variable and in float32 otherwise. None if `var` is not
            averaged.

        Raises:
            TypeError: If `var` is none of these.
        """
        variable = stack.tf_variable(var)
        if not isinstance(variable, (tf.Variable, tf.Tensor)):
            raise TypeError(f"`var` must be a variable. Received: var={var!r}")
        return self._average_of.value.get(variable.ref())

    def average_name(self, var: Any) -> str:
        """The name of the variable that holds the average of `var`.

        It is `<variable>/<name>`, in the current scope and made unique, as in
        `tf.train.ExponentialMovingAverage`.

        >>> variable = tf.Variable(1.0, name="w")
        >>> swa_tf.StochasticWeightAveraging(name="swa").average_name(variable)
        'w/swa'

        Args:
            var: A variable, averaged or not yet.

        Raises:
            TypeError: If `var` is no variable.
        """
        average = self.average(var)
        if average is not None:
            return stack.variable_name(average)
        graph = tf.compat.v1.get_default_graph()
        name = f"{stack.variable_name(var)}/{self.name}"
        return str(graph.unique_name(name, mark_as_used=False))

    def variables_to_restore(
        self, moving_avg_variables: Iterable[Any] | None = None
    ) -> dict[str, Any]:
        """Names and variables for a v1 `Saver` that restores the averages.

        A `Saver` made with the result reads the average of each variable into
        the variable itself, and every other variable of the graph as it is.
        The counts of models and calls are not among them: who reads the
        averages into the weights evaluates, and does not go on averaging.

        >>> with tf.Graph().as_default():
        ...     variable = tf.Variable(1.0, name="w")
        ...     swa = swa_tf.StochasticWeightAveraging(name="swa")
        ...     sorted(swa.variables_to_restore())
        ['w/swa']

        Args:
            moving_avg_variables: The averaged variables; None takes the v1
                graph's trainable variables and its collection
                `MOVING_AVERAGE_VARIABLES`.

        Returns:
            A dictionary from the name in the checkpoint to the variable.

        Raises:
            ValueError: If `moving_avg_variables` is None where there is no v1
                graph to take the variables from.
        """
        v1 = tf.compat.v1
        if moving_avg_variables is None:
            _var_lists.require_v1_graph("moving_avg_variables")
            moving_avg_variables = [
                *v1.trainable_variables(),
                *v1.moving_average_variables(),
            ]
        averaged = [stack.tf_variable(v) for v in moving_avg_variables]
        restored = {self.average_name(v): v for v in averaged}
        counts = [v for v in (self._n_models, self._n_calls) if v is not None]
        # By name: an imported graph has several objects for one variable.
        skip = {stack.variable_name(v) for v in [*averaged, *counts]}
        for variable in v1.global_variables():
            name = stack.variable_name(variable)
            if name not in skip:
                restored.setdefault(name, variable)
        return restored

    def reset(self) -> Any:
        """Forgets models and calls: the next `apply` is the first again.

        >>> variable = tf.Variable(1.0)
        >>> swa = swa_tf.StochasticWeightAveraging()
        >>> swa.apply([variable])
        >>> swa.reset()
        >>> int(swa.n_models)
        0

        Returns:
            In a graph the op that resets, in eager mode None.
        """
        counts = [self._n_models, self._n_calls]
        return tf.group(*[n.assign(0) for n in counts if n is not None])

    @abc.abstractmethod
    def _coefficient(self, n_models: tf.Tensor) -> tf.Tensor:
        """The c of the equation after `n_models` models, as float64."""

    def _apply(self, var_list: Iterable[Any] | None) -> Any:
        """`apply` outside replica context."""
        with ONE_AT_A_TIME:
            self._state.check(self.name)
            if var_list is None:
                _var_lists.require_v1_graph("var_list")
                var_list = tf.compat.v1.trainable_variables()
            if tf.executing_eagerly():
                return self._apply_eagerly(var_list)
            return self._update(self._prepared(var_list))

    def _apply_eagerly(self, var_list: Iterable[Any]) -> None:
        """`apply` by functions that the first call with `var_list` makes.

        Later calls do nothing in Python for each variable but to look whether
        it is the same.
        """
        if not isinstance(var_list, (list, tuple)):
            var_list = self._prepared(var_list)
        made = self._functions.of(var_list)
        if made is None:
            variables = self._prepared(var_list)
            if not all(v.shape.is_fully_defined() for v in variables):
                self._update(variables, compiled=False)  # checked each time
                return
            made = self._functions.make(
                var_list,
                functools.partial(self._update, variables),
                _updates.Update(self._pairs(variables)).compiles,
            )
        made.run(self._pace.is_fast(self._period))

    @property
    def _period(self) -> int:
        return self._when.period if self._when else 1

    def _prepared(self, var_list: Iterable[Any]) -> list[Any]:
        """The checked variables of `var_list`, each with a shadow variable."""
        variables = self._checked(var_list)
        self._make_averages(variables)
        return variables

    def _pairs(self, variables: list[Any]) -> list[tuple[tf.Variable, Any]]:
        """Each average with its weight, one of a pair on each device."""
        return [
            pair
            for variable in variables
            for pair in variables_lib.component_pairs(
                self.average(variable), variable
            )
        ]

    def _update(
        self, variables: list[Any], compiled: bool | None = None
    ) -> Any:
        """Averages `variables` in, where it is due.

        In a function of the average's own, which runs where Python has looked
        for a swap, compiled by XLA or not. With None in a graph of the caller,
        which looks and chooses when it runs.
        """
        averages = [self.average(variable) for variable in variables]
        is_own = compiled is not None
        checks = _var_lists.shape_checks(variables, averages)
        if not is_own:
            checks += self._state.assertions(self.name)
        # There nobody sees the scope, whose name may be one that only eager
        # mode takes.
        unnamed = is_own or self.name is None
        with tf.name_scope("average" if unnamed else self.name) as scope:
            with tf.control_dependencies(checks):
                due = self._due()
                live = tf.ones([], tf.int64) if is_own else self._state.live()
                n_models = self._read_n_models()

            def average() -> Any:
                c = self._coefficient(n_models)
                first = self._is_first(variables, n_models)
                if first is not False:
                    c = tf.where(first, tf.ones_like(c), c)
                # Where XLA leaves the assertions out, it moves nothing.
                inside = tf.logical_and(c >= 0.0, c <= 1.0)
                c = tf.where(inside, c, tf.zeros_like(c))
                c *= tf.cast(live, c.dtype)
                return self._move(variables, c, n_models, compiled)

            with tf.control_dependencies([n_models]):
                moved = (
                    average()
                    if due is True
                    else tf.cond(due, average, tf.no_op)
                )
            with tf.control_dependencies([] if moved is None else [moved]):
                counted = self._n_models.assign(
                    n_models + tf.cast(due, tf.int64) * live
                )
            return tf.group(counted, name=scope)

    def _read_n_models(self) -> tf.Tensor:
        return self._n_models.read_value()

    def _has_averages_from_the_start(self) -> bool:
        """Whether there is something to swap in before the first `apply`."""
        return False

    def _is_first(self, variables: list[Any], n_models: tf.Tensor) -> Any:
        """Whether averages start as the weight; False if they never do.

        Of all of them, or of each of `variables` in a vector.
        """
        return tf.equal(n_models, 0)

    def _move(
        self,
        variables: list[Any],
        c: tf.Tensor,
        n_models: tf.Tensor,
        compiled: bool | None,
    ) -> Any:
        """average <- average + c * (weight - average)

        With one `c` for all, or a vector that has one for each of `variables`.
        """
        update = _updates.Update(self._pairs(variables))
        if c.shape.rank:
            sizes = [
                len(variables_lib.components(self.average(v)))
                for v in variables
            ]
            c = tf.gather(c, np.repeat(np.arange(len(sizes)), sizes))
        when: Any = compiled
        if compiled is None:
            when = _updates.many_in_a_graph(n_models, self._period)
        return update(c, n_models, when)

    def assert_averaged(
        self, var_list: Iterable[Any] | None = None
    ) -> list[tf.Operation]:
        """Raises if nothing was averaged yet; in a graph, gives assertions.

        >>> swa = swa_tf.StochasticWeightAveraging()
        >>> swa.apply([tf.Variable(1.0)])
        >>> swa.assert_averaged()
        []

        Args:
            var_list: Variables of `apply` or `build`, each of which must have
                been averaged: an EMA may have averaged others only.

        Returns:
            In a graph the ops that raise `tf.errors.InvalidArgumentError`.

        Raises:
            RuntimeError: In eager mode.
        """
        if self._has_averages_from_the_start():
            return []
        message = (
            f"{self.name} has averaged nothing yet: call `apply` first, or "
            "restore a checkpoint and call `build`."
        )
        if tf.executing_eagerly():
            if int(self.n_models) == 0:
                raise RuntimeError(message)
            return []
        return [tf.debugging.assert_positive(self.n_models, message=message)]

    def _due(self) -> Any:
        """Whether this call averages; counts it."""
        if self._when is None:
            return True
        calls: Any = self._n_calls
        index = calls.read_value()
        with tf.control_dependencies([index]):
            counted = calls.assign_add(1)
        with tf.control_dependencies([counted]):
            return self._when.due(tf.identity(index))

    def _checked(self, var_list: Iterable[Any]) -> list[Any]:
        """The `tf.Variable`s of `var_list`, or an error that says why not."""
        variables = variables_lib.checked_list(
            "var_list", var_list, tensors=True
        )
        averages = [self.average(v) for v in variables]
        _var_lists.check_strategies(
            variables, averages, self._n_models, self.name
        )
        _var_lists.check_each(variables, self._device)
        if self._average_of.value:
            _var_lists.check_graph(variables, self._graph)
            if not self._takes_others:
                averaged = [key.deref() for key in self._average_of.value]
                _var_lists.check_same(variables, averaged)
            _var_lists.check_shapes(variables, averages)
        return variables

    def _make_averages(self, variables: list[Any]) -> None:
        """Makes the shadow variables, unless they are there."""
        if variables_lib.outermost_graph() is not self._graph:
            self._make_count()
        new = [v for v in variables if self.average(v) is None]
        if new:
            self._make_new_averages(new)
        averages = list(self._average_of.value.values())
        # The last time an interrupt may have come before this.
        self._averages.extend(averages[len(self._averages) :])

    def _make_new_averages(self, variables: list[Any]) -> None:
        averaged = [key.deref() for key in self._average_of.value]
        self._state.note([*averaged, *variables], self._takes_others)
        averages = {
            v.ref(): _shadows.make(v, self.name, self._device)
            for v in variables
        }
        self._average_of.value.update(averages)  # all of them, or none

    def _make_count(self) -> None:
        """Makes the variables of the object, outside any function."""
        self._graph = variables_lib.outermost_graph()
        self._functions = _functions.Functions()
        with tf.init_scope():
            self._state = _state.State()
        self._n_models = self._counter("n_models")
        if self._graph is None:
            self._state.n_models = self.n_models
        if self._when is not None:
            self._n_calls = self._counter("n_calls")
        # For `tf.saved_model.save`, which wants to find what functions use.
        self._swapped = self._state.variable

    def _counter(self, name: str) -> tf.Variable:
        with tf.init_scope():
            return tf.Variable(
                0,
                trainable=False,
                dtype=tf.int64,
                name=self._own_name(name),
            )

    def _own_name(self, name: str) -> str:
        """The name of what belongs to the object, and to no variable."""
        return f"{self.name}/{name}" if self.name else name


class StochasticWeightAveraging(WeightAverage):
    """The equal average of all models seen (SWA).

        average <- average + (weight - average) / (n_models + 1)

    so that after n calls of `apply` the average is the mean of n models, the
    first of them included. Use it as `tf.train.ExponentialMovingAverage`: call
    `apply` after an optimizer step, from the epoch on at which averaging is to
    start, and evaluate under `swa_tf.averaged_weights`. A model with batch
    normalization needs `swa_tf.refit_batch_norm` there.

    >>> model = tf.keras.Sequential([tf.keras.layers.Dense(1)])
    >>> _ = model(tf.ones([1, 2]))
    >>> swa = swa_tf.StochasticWeightAveraging()
    >>> swa.apply(model.trainable_variables)      # at the end of an epoch
    >>> with swa_tf.averaged_weights(swa, model):
    ...     output = model(tf.ones([1, 2]))       # of the averaged model
    >>> int(swa.n_models)
    1

    The object is a `tf.Module`: `tf.train.Checkpoint(model=model,
    optimizer=optimizer, swa=swa)` saves it and restores it, also before the
    first `apply`, and training goes on bit for bit.

    Rounding: each update is rounded to float32 (float64 for float64), up or
    down in proportion, so that the errors of many updates cancel rather than
    add up. 1,000 updates stay within 3e-6 of the exact mean, relative to the
    largest weight, and so do weights that drift by less than float32 can add
    to their average, where a plain running mean stands still (3e-5 off for a
    drift of 1e-4). An exact sum stays exact: equal weights average to
    themselves.

    Args:
        name: Suffix of the names of the shadow variables.
        when: The automatic mode: `apply` is called after every step (or
            epoch) and averages when this schedule says so. None is the manual
            mode: each call averages.
        device: Where the averages are kept and updated, for example "/cpu:0"
            for a model that fills its accelerator; each update then sends the
            weights there. None keeps each where its variable is. Must be None
            for variables of a strategy.

    References:
        Izmailov et al. 2018, Averaging Weights Leads to Wider Optima and
        Better Generalization, equation in section 3.1,
        https://arxiv.org/abs/1803.05407. The form with c is the running mean
        of Welford 1962.
    """

    def __init__(
        self,
        name: str = "StochasticWeightAveraging",
        when: AveragingSchedule | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__(name, when, device)

    def _coefficient(self, n_models: tf.Tensor) -> tf.Tensor:
        return 1.0 / tf.cast(n_models + 1, tf.float64)


def _checked_when(when: Any) -> AveragingSchedule | None:
    if when is not None and not isinstance(when, AveragingSchedule):
        raise TypeError(
            "`when` must be a `swa_tf.AveragingSchedule` or None. "
            f"Received: when={when!r}"
        )
    return when


def _apply_merged(
    strategy: tf.distribute.Strategy, averages: Any, var_list: Any
) -> Any:
    """`apply` of all replicas, outside replica context.

    Each replica may have made an object of its own, inside `strategy.run`:
    their variables are the same already, and the rest is made so.
    """
    if strategy.num_replicas_in_sync > 1 and isinstance(
        var_list, (list, tuple)
    ):
        tensors = [v for v in var_list if isinstance(v, tf.Tensor)]
        if tensors:
            raise ValueError(
                "`var_list` must hold variables in replica context, where each "
                f"replica has tensors of its own. Received: {tensors}"
            )
    first, *others = getattr(averages, "values", [averages])
    applied = first._apply(var_list)
    for other in others:
        vars(other).update(vars(first))
    return applied
