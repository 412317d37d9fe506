"""Shadow variables: makes them, checks them, and gives them out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from swa_tf.averaging import v1_graph, variable_checks
from swa_tf.averaging.averaging_schedule import AveragingSchedule
from swa_tf.averaging.checkpoint_state import CheckpointState
from swa_tf.averaging.update import UpdateCache
from swa_tf.support import checks, compat
from swa_tf.support import variables as variables_lib


class ShadowVariables(variables_lib.BoundModule):
    """The part of a `WeightAverage` that does not update: its variables."""

    # Whether later calls of `apply` may name other variables than the first.
    _takes_others = False

    def __init__(
        self,
        name: Any = ...,
        when: AveragingSchedule | None = None,
        device: str | None = None,
        skip_nonfinite: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__ if name is ... else name
        if not isinstance(name, (str, type(None))):
            raise checks.wrong("name", "a string", name, TypeError)
        variables_lib.check_device(device)
        self._name = name
        self._device = device
        self._averages: list[tf.Variable] = []
        self._average_of = variables_lib.Untracked({})
        self._when = _checked_when(when)
        self._n_calls: Any = None
        self._skips = checks.boolean("skip_nonfinite", skip_nonfinite)
        self._n_skipped: Any = None
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
        """The schedule of the calls of `apply` that average; None for all.

        Set it before `apply` is traced: a compiled function keeps its own.

        >>> swa_tf.StochasticWeightAveraging().when is None
        True
        """
        return self._when

    @when.setter
    def when(self, when: AveragingSchedule | None) -> None:
        self._when = _checked_when(when)
        self._lists = UpdateCache()  # traced with the old one
        if when is not None and self._n_calls is None:
            self._n_calls = self._counter("n_calls")

    @property
    def n_calls(self) -> tf.Variable | None:
        """The number of calls of `apply`, due or not, as `n_models` is.

        Assigning an integer counts on from there. None without a `when`.

        >>> when = swa_tf.AveragingSchedule(start=10)
        >>> int(swa_tf.StochasticWeightAveraging(when=when).n_calls)
        0
        """
        if self._when is None:
            return None
        return variables_lib.components(self._n_calls)[0]

    @n_calls.setter
    def n_calls(self, n_calls: int) -> None:
        if self._when is None:
            raise AttributeError("`n_calls` is there with a `when` only")
        self._n_calls.assign(n_calls)

    @property
    def n_skipped(self) -> tf.Variable | None:
        """The number of models left out, as `n_models` is.

        None without `skip_nonfinite`.

        >>> variable = tf.Variable(1.0)
        >>> swa = swa_tf.StochasticWeightAveraging(skip_nonfinite=True)
        >>> for value in (1.0, float("nan"), 3.0):
        ...     _ = variable.assign(value)
        ...     swa.apply([variable])
        >>> float(swa.average(variable)), int(swa.n_models), int(swa.n_skipped)
        (2.0, 2, 1)
        """
        if not self._skips:
            return None
        return variables_lib.components(self._n_skipped)[0]

    @property
    def swapped(self) -> bool:
        """Whether `swa_tf.averaged_weights` has swapped the averages in.

        >>> swa_tf.StochasticWeightAveraging().swapped
        False
        """
        return self._state.swapped

    def _mark_swapped(self, swapped: bool) -> None:
        # Not a setter: `tf.Module` skips one that would change nothing, but
        # after an interrupt `set` may still have to write the variable.
        self._state.set(swapped)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        self._state.check_none_waits("An average cannot be copied", "The copy")
        copied = super().__deepcopy__(memo)
        if copied.swapped:  # by no block, which would end the swap
            copied._mark_swapped(False)
        return copied

    @property
    def averaged(self) -> list[tuple[str, tf.Variable]]:
        """The averages, each with the name of its variable, in their order.

        >>> swa = swa_tf.StochasticWeightAveraging()
        >>> swa.apply([tf.Variable(1.0, name="w")])
        >>> [(name, float(average)) for name, average in swa.averaged]
        [('w', 1.0)]
        """
        averages = self._average_of.value.items()
        return [(compat.variable_name(key.deref()), v) for key, v in averages]

    def build(self, var_list: Iterable[Any]) -> None:
        """Makes the shadow variables of `var_list` without averaging.

        The first `apply` does this by itself. Call `build` where there is
        none: to evaluate a checkpoint in a process that does not train.

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
        self._prepared(var_list, begin=False)

    def average(self, var: Any) -> tf.Variable | None:
        """Returns the variable that holds the average of `var`.

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
            A variable of the same shape, in float64 for float64 and in float32
            otherwise; None if `var` is not averaged.

        Raises:
            TypeError: If `var` is none of these.
        """
        variable = compat.tf_variable(var)
        if not isinstance(variable, (tf.Variable, tf.Tensor)):
            raise checks.wrong("var", "a variable", var, TypeError)
        return self._average_of.value.get(variable.ref())

    def average_name(self, var: Any) -> str:
        """Returns the name of the average of `var`, as TensorFlow's class does.

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
            return compat.variable_name(average)
        graph = tf.compat.v1.get_default_graph()
        name = f"{compat.variable_name(var)}/{self.name}"
        return str(graph.unique_name(name, mark_as_used=False))

    def variables_to_restore(
        self, moving_avg_variables: Iterable[Any] | None = None
    ) -> dict[str, Any]:
        """Returns a dictionary for a v1 `Saver`: names in files and variables.

        It reads averages into their variables, and every other variable as it
        is, except the counts of models and calls: it serves evaluation.

        >>> with tf.Graph().as_default():
        ...     variable = tf.Variable(1.0, name="w")
        ...     swa = swa_tf.StochasticWeightAveraging(name="swa")
        ...     sorted(swa.variables_to_restore())
        ['w/swa']

        Args:
            moving_avg_variables: The averaged variables; None takes the v1
                graph's trainable variables and its collection
                `MOVING_AVERAGE_VARIABLES`.

        Raises:
            ValueError: If `moving_avg_variables` is None outside a v1 graph.
        """
        v1 = tf.compat.v1
        if moving_avg_variables is None:
            variable_checks.require_v1_graph("moving_avg_variables")
            moving_avg_variables = (
                v1.trainable_variables() + v1.moving_average_variables()
            )
        averaged = [compat.tf_variable(v) for v in moving_avg_variables]
        restored = {self.average_name(v): v for v in averaged}
        # By name: an imported graph has several objects for one variable.
        skip = {compat.variable_name(v) for v in [*averaged, *self._counts()]}
        for variable in v1.global_variables():
            name = compat.variable_name(variable)
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
        return tf.group(*self._reset_ops())

    def _reset_ops(self) -> list[Any]:
        return [v.assign(tf.zeros_like(v)) for v in self._counts()]

    def assert_averaged(
        self, var_list: Iterable[Any] | None = None
    ) -> list[tf.Operation]:
        """Raises if nothing was averaged yet; in a graph, gives assertions.

        >>> swa = swa_tf.StochasticWeightAveraging()
        >>> swa.apply([tf.Variable(1.0)])
        >>> swa.assert_averaged()
        []

        Args:
            var_list: Variables of which each must have been averaged.

        Returns:
            In a graph the ops that raise `tf.errors.InvalidArgumentError`.

        Raises:
            RuntimeError: In eager mode, and wherever one of `var_list` has no
                average at all.
            TypeError, ValueError: If `var_list` is no list of variables.
        """
        assertions = []
        if not self._has_averages_from_the_start():
            message = (
                f"{self.name} has averaged nothing yet: call `apply` first, or "
                "restore a checkpoint and call `build`."
            )
            if self._when is not None:
                message += f" `apply` averages only if due by {self._when}."
            if not tf.executing_eagerly():
                check = tf.debugging.assert_positive
                assertions.append(check(self.n_models, message=message))
            elif int(self.n_models) == 0:
                raise RuntimeError(message)
        if var_list is None:
            return assertions
        variables = variables_lib.checked_list(
            "var_list", var_list, tensors=True
        )
        unknown = [v for v in variables if self.average(v) is None]
        if unknown:
            wanted = f"variables that {self.name} averages"
            raise variables_lib.wrong(wanted, unknown, RuntimeError)
        return [*assertions, *self._check_each_averaged(variables)]

    def _check_each_averaged(self, variables: list[Any]) -> list[Any]:
        return []  # one update averages all of them

    def _has_averages_from_the_start(self) -> bool:
        """Whether there is something to swap in before the first `apply`."""
        return False

    def _counts(self) -> list[tf.Variable]:
        """Returns the variables that an update changes beside the averages."""
        counts = (self._n_models, self._n_calls, self._n_skipped)
        return [v for v in counts if v is not None]

    def _averaged_variables(self) -> list[Any]:
        return [key.deref() for key in self._average_of.value]

    def _checked(self, var_list: Iterable[Any]) -> list[Any]:
        """Returns the `tf.Variable`s of `var_list`, or raises."""
        variables = variables_lib.checked_list(
            "var_list", var_list, tensors=True
        )
        averages = [self.average(v) for v in variables]
        variable_checks.check_strategies(
            variables, averages, self._n_models, self.name
        )
        variable_checks.check_each(variables, self._device)
        if self._average_of.value:
            variable_checks.check_graph(variables, self._graph)
            if not self._takes_others:
                averaged = self._averaged_variables()
                variable_checks.check_same(variables, averaged)
            variable_checks.check_shapes(variables, averages)
        return variables

    def _prepared(
        self,
        var_list: Iterable[Any],
        begin: bool = True,
        given: Mapping[Any, tf.Variable] | None = None,
    ) -> Any:
        """Returns the checked `var_list`, ready to update if `begin`.

        `given` has variables to take as new averages, by the `ref()`s of those
        that they average: where the dtype and the device are an average's.
        """
        variables = self._checked(var_list)
        self._make_averages(variables, begin, given)
        return variables

    def _make_averages(
        self,
        variables: list[Any],
        begin: bool,
        given: Mapping[Any, tf.Variable] | None,
    ) -> None:
        """Makes the shadow variables that are not there yet, all or none."""
        if variables_lib.outermost_graph() is not self._graph:
            self._make_count()
        new = [v for v in variables if self.average(v) is None]
        if new:
            self._state.note([*self._averaged_variables(), *new])
            made = {v.ref(): self._taken_or_made(v, given or {}) for v in new}
            self._average_of.value.update(made)
        # Also those of a call that was interrupted before this.
        averages = list(self._average_of.value.values())
        self._averages.extend(averages[len(self._averages) :])

    def _taken_or_made(
        self, variable: Any, given: Mapping[Any, tf.Variable]
    ) -> tf.Variable:
        average = given.get(variable.ref())
        dtype = variables_lib.dtype_of_average(variable)
        if average is not None and not self._device and average.dtype == dtype:
            return average
        if self._graph is not None:
            return v1_graph.made(variable, self.name, self._device)
        strategy = variables_lib.strategy_of(variable)
        with tf.init_scope():
            value = tf.cast(variables_lib.initial_value(variable), dtype)
            place = tf.device(self._device or variable.device)
            with strategy.scope() if strategy else place:
                name = f"{compat.variable_name(variable)}/{self.name}"
                return tf.Variable(value, trainable=False, name=name)

    def _make_count(self) -> None:
        """Makes the variables of the object, outside any function."""
        self._graph = variables_lib.outermost_graph()
        self._lists = UpdateCache()
        with tf.init_scope():
            self._state = CheckpointState(
                self._takes_others, type(self).__name__, self._layout()
            )
        self._n_models = self._counter("n_models")
        if self._graph is None:
            self._state.n_models = self.n_models
        if self._when is not None:
            self._n_calls = self._counter("n_calls")
        if self._skips:
            self._n_skipped = self._counter("n_skipped")
        # An attribute of the module, for `tf.saved_model.save`.
        self._swapped = self._state.variable

    def _layout(self) -> dict[str, Any]:
        """Returns the arguments that a checkpoint must have been made with."""
        return {}

    def _counter(self, name: str) -> tf.Variable:
        v1 = tf.compat.v1
        collections = None
        if self._has_averages_from_the_start():
            # The rounding alone depends on it. As no global variable it is not
            # looked for, by a `Saver`, in checkpoints of TensorFlow's class.
            collections = [v1.GraphKeys.LOCAL_VARIABLES]
        with tf.init_scope():
            return v1.Variable(
                0,
                trainable=False,
                collections=collections,
                dtype=tf.int64,
                use_resource=True,
                name=self._own_name(name),
            )

    def _own_name(self, name: str) -> str:
        """Returns the name of a variable or scope of the object itself."""
        return f"{self.name}/{name}" if self.name else name


def _checked_when(when: Any) -> AveragingSchedule | None:
    if when is not None and not isinstance(when, AveragingSchedule):
        wanted = "a `swa_tf.AveragingSchedule` or None"
        raise checks.wrong("when", wanted, when, TypeError)
    return when
