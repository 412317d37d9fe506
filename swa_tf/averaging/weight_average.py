"""The base of every average of weights: when and how it is updated."""

from __future__ import annotations

import abc
import functools
import threading
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from swa_tf.averaging import variable_checks
from swa_tf.averaging.averaging_schedule import checked_due
from swa_tf.averaging.shadow import ShadowVariables
from swa_tf.averaging.update import ListUpdate, Update
from swa_tf.support import checks
from swa_tf.support import variables as variables_lib

_MAX_UNTRACED_UPDATES = 50

ONE_AT_A_TIME = threading.RLock()
"""The lock held to change averages or to swap them in.

Two threads could count two models as one, or average swapped-in averages.
"""


class WeightAverage(ShadowVariables, metaclass=abc.ABCMeta):
    """The base of every average: makes, updates and counts averages.

        average <- average + c(n) * (weight - average)

    where n is the number of models already averaged; the first update makes
    the average equal to the weight whatever c is. A shadow variable holds the
    average itself, in at least float32: one in bfloat16 would soon stop moving.
    See `StochasticWeightAveraging` for how an average is used.

    A new kind of average is a subclass with a method `coefficient`, which
    works in every mode. This one gives later models more weight than earlier
    ones (polynomial-decay averaging, Shamir and Zhang 2013, section 4):

    >>> class PolynomialAverage(swa_tf.WeightAverage):
    ...     def __init__(self, gamma, **kwargs):
    ...         super().__init__(**kwargs)
    ...         self._gamma = gamma
    ...
    ...     def coefficient(self, n_models):
    ...         n = tf.cast(n_models, tf.float64)
    ...         return (self._gamma + 1) / (n + self._gamma + 1)
    >>> variable = tf.Variable(0.0)
    >>> average = PolynomialAverage(gamma=1.0)
    >>> for value in (1.0, 4.0, 8.0):
    ...     _ = variable.assign(value)
    ...     average.apply([variable])
    >>> float(average.average(variable))
    5.5

    An average restored from a checkpoint must be given as many variables as
    the checkpoint has averages of, of the same shapes in the same order.
    Names may differ, since Keras makes names up in each process, but the same
    names in another order are an error. (An `ExponentialMovingAverage` may be
    given more or fewer, if one list begins with the other, names included.)

    A `copy.deepcopy` has averages and counts of its own, not swapped in, of
    the same variables, or of their copies made in the same call. It cannot be
    pickled: a `tf.train.Checkpoint` takes it from one process to another.

    Args:
        name: Suffix of the names of the shadow variables; by default the name
            of the class.
        when: As in `StochasticWeightAveraging`.
        device: As in `StochasticWeightAveraging`.
        skip_nonfinite: As in `StochasticWeightAveraging`.
    """

    @tf.autograph.experimental.do_not_convert  # or a trace takes four times
    def apply(self, var_list: Iterable[Any] | None = None) -> Any:
        """Averages the present values of `var_list` in, where it is due.

        The first call makes the shadow variables; each later call takes the
        same variables. With a schedule `when` the calls that are due average.
        Works in eager mode, in `tf.function`, in a v1 graph, and under
        `tf.distribute` in replica and cross-replica context (in replica
        context not inside `tf.cond`: let `when` decide). In a function, call it
        after what assigns the variables: then a step that fails before that, as
        when the data end, is neither averaged nor counted.

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
            In a graph the op that updates the averages (which a `tf.function`
            runs by itself and cannot return), in eager mode None.

        Raises:
            TypeError: If `var_list` is not a list, or holds anything but
                floating-point variables.
            ValueError: If `var_list` is empty, is None outside a v1 graph,
                names a variable twice, is not the list of the first call or of
                the checkpoint restored, or holds a variable whose shape has
                changed or of another strategy than that in whose scope this is.
            RuntimeError: If the averages are swapped in (a function traced
                before raises `tf.errors.InvalidArgumentError`), or in a
                function that workers of parameter servers run.
        """
        if tf.distribute.has_strategy():
            variable_checks.require_coordinator()
            replica_context = tf.distribute.get_replica_context()
            if replica_context is not None:
                return replica_context.merge_call(
                    lambda strategy, averages: _apply_merged(
                        strategy, averages, var_list
                    ),
                    args=(self,),
                )
        return self._apply(var_list)

    @abc.abstractmethod
    def coefficient(self, n_models: tf.Tensor) -> Any:
        """Returns the c of the equation after `n_models` models.

        Called in each update in eager mode (after the first 50 also for a model
        that is then left out, as it is not finite), and once in each trace.

        >>> n_models = tf.constant(3, tf.int64)
        >>> float(swa_tf.StochasticWeightAveraging().coefficient(n_models))
        0.25

        Args:
            n_models: The number of models already averaged: an int64 scalar.

        Returns:
            A float64 scalar tensor or a number in [0, 1]; others move nothing.
        """

    def _apply(self, var_list: Iterable[Any] | None) -> Any:
        """Applies outside replica context."""
        with ONE_AT_A_TIME:
            self._state.check(self.name)
            if var_list is None:
                variable_checks.require_v1_graph("var_list")
                var_list = tf.compat.v1.trainable_variables()
            if tf.executing_eagerly():
                return self._apply_eagerly(var_list)
            update = self._list_update(var_list)
            name = "average" if self.name is None else self.name
            with tf.name_scope(name) as scope:
                pairs = [(v, self.average(v)) for v in update.variables]
                checks = variable_checks.ready(pairs)
                checks += self._state.assertions(self.name)
                with tf.control_dependencies([tf.group(*checks)]):
                    updated = self._update(update, live=self._state.live())
                return tf.group(updated, name=scope)

    def _list_update(self, var_list: Iterable[Any]) -> ListUpdate:
        variables = self._prepared(var_list)
        return ListUpdate(variables, Update(self._pairs(variables)))

    def _apply_eagerly(self, var_list: Iterable[Any]) -> None:
        """Applies op by op at first, and by a traced function later.

        Whether it is due, and the c of a user's code, are asked of Python each
        time, so that this code goes on as it began.
        """
        if not isinstance(var_list, (list, tuple)):
            var_list = self._checked(var_list)  # can be iterated over once
        if self._graph is not None:  # it was made in a v1 graph
            var_list = self._checked(var_list)
            self._make_count()
        update = self._lists.get(var_list)
        if update is None or update.n_op_by_op < _MAX_UNTRACED_UPDATES:
            self._apply_op_by_op(var_list, update)
        elif self._is_due_now():
            c = []
            if self._is_of_python():
                n_models = variables_lib.read(self.n_models)
                c.append(self._checked_coefficient(n_models))
            if update.traced is None:
                known = update
                traced = tf.function(
                    lambda *c: self._update(known, *c, is_due=True),
                    autograph=False,
                )
                # A `tf.function` would warn of each new average it traces.
                update.traced = traced.get_concrete_function(*c)
            update.traced(*c)
        else:
            self._n_calls.assign_add(1)

    def _apply_op_by_op(self, var_list: Any, update: ListUpdate | None) -> None:
        """Updates all averages, or none if it is interrupted."""
        restores = [variables_lib.snapshot(self._counts())]

        def restore() -> None:
            for each in restores:
                each()

        with variables_lib.all_or_none(restore):
            if update is None:
                update = self._list_update(var_list)
                if all(v.shape.is_fully_defined() for v in update.variables):
                    self._lists.add(var_list, update)
            if not self._is_due_now():
                self._n_calls.assign_add(1)
                return
            restores.append(self._snapshot(update.variables))
            self._update(update, is_due=True)
        update.n_op_by_op += 1

    def _is_of_python(self) -> bool:
        """Whether c may depend on Python's state, in a user's `coefficient`."""
        package = __name__.split(".")[0]
        return type(self).coefficient.__module__.split(".")[0] != package

    def _is_due_now(self) -> bool:
        """Whether this call, in eager mode, averages."""
        if self._when is None:
            return True
        n_before = int(variables_lib.read(self._n_calls))
        return bool(checked_due(self._when, n_before))

    def _snapshot(self, variables: list[Any]) -> Callable[[], None]:
        """Returns a function that takes an eager move of averages back."""
        return variables_lib.snapshot(map(self.average, variables))

    def _checked_coefficient(self, n_models: tf.Tensor) -> tf.Tensor:
        given = self.coefficient(n_models)
        try:
            c = tf.convert_to_tensor(given, tf.float64)
            if c.dtype != tf.float64:  # an eager tensor in a graph
                raise TypeError(c.dtype.name)
            c.shape.assert_has_rank(0)
        except (TypeError, ValueError) as error:
            wanted = "a float64 scalar tensor or a number"
            raise checks.wrong("coefficient()", wanted, given) from error
        return c

    def _pairs(self, variables: list[Any]) -> list[tuple[tf.Variable, Any]]:
        """Returns each average with its weight, for each device."""
        averages = map(self.average, variables)
        return variables_lib.component_pairs(zip(averages, variables))

    def _update(
        self,
        update: ListUpdate,
        c: tf.Tensor | None = None,
        *,
        is_due: bool = False,
        live: Any = 1,
    ) -> Any:
        """Averages a list in, if it `is_due` or is found to be.

        By `c`, if that is known; if `live` is 0, it moves and counts nothing.
        """
        due, skipped = self._due(is_due), None
        if self._skips:
            due, skipped = _split_by_finite(due, update.variables)
        if self._graph is None:
            n_models = self._n_models.read_value()
        else:  # where an EMA does not need it to be initialized
            n_models = variables_lib.initial_value(self._n_models)

        def average() -> Any:
            own = self._checked_coefficient(n_models) if c is None else c
            first = self._is_first(update.variables, n_models)
            if first is not False:
                own = tf.where(first, tf.ones_like(own), own)
            # For XLA, which leaves assertions out.
            inside = tf.logical_and(own >= 0.0, own <= 1.0)
            own = tf.where(inside, own, tf.zeros_like(own))
            return self._move(update, own * tf.cast(live, own.dtype), n_models)

        with tf.control_dependencies([n_models]):
            always = due is True
            moved = average() if always else tf.cond(due, average, tf.no_op)
        with tf.control_dependencies([] if moved is None else [moved]):
            n_new = tf.cast(due, tf.int64) * live
            counted = [self._n_models.assign(n_models + n_new)]
            if skipped is not None:
                n_skipped = tf.cast(skipped, tf.int64) * live
                counted.append(self._n_skipped.assign_add(n_skipped))
        return counted

    def _is_first(self, variables: list[Any], n_models: tf.Tensor) -> Any:
        """Whether averages start as the weight: all, or each of the pairs."""
        return tf.equal(n_models, 0)

    def _move(self, update: ListUpdate, c: tf.Tensor, n_models: Any) -> Any:
        """Moves averages by `c`: one number, or a vector for `_pairs`."""
        return update.move(c, n_models)

    def _due(self, is_known: bool) -> Any:
        """Counts this call, and returns whether it averages."""
        if self._when is None:
            return True
        calls: Any = self._n_calls
        if is_known:
            calls.assign_add(1)
            return True
        index = calls.read_value()
        with tf.control_dependencies([index]):
            counted = calls.assign_add(1)
        with tf.control_dependencies([counted]):
            due = checked_due(self._when, tf.identity(index))
            return tf.convert_to_tensor(due)


def check_average(argument: str, value: Any) -> None:
    """Raises unless `value` is a `WeightAverage`."""
    if not isinstance(value, WeightAverage):
        wanted = "a `WeightAverage`, such as `StochasticWeightAveraging()`"
        raise checks.wrong(argument, wanted, value, TypeError)


def _split_by_finite(due: Any, variables: list[Any]) -> tuple[Any, Any]:
    """Returns whether a model that is due is averaged, or is left out."""
    finite = functools.partial(variables_lib.all_finite, variables)
    if due is True:
        taken = finite()
    else:
        taken = tf.cond(due, finite, lambda: tf.constant(False))
    return taken, tf.logical_and(due, tf.logical_not(taken))


def _apply_merged(
    strategy: tf.distribute.Strategy, averages: Any, var_list: Any
) -> Any:
    """Applies once for all replicas, outside replica context."""
    if isinstance(var_list, (list, tuple)):
        tensors = [v for v in var_list if isinstance(v, tf.Tensor)]
        if tensors and strategy.num_replicas_in_sync > 1:
            wanted = "a list of variables, in replica context not of tensors"
            raise checks.wrong("var_list", wanted, tensors)
    first, *others = getattr(averages, "values", [averages])
    applied = first._apply(var_list)
    # Replicas that each made an object inside `strategy.run` share its state.
    for other in others:
        vars(other).update(vars(first))
    return applied
