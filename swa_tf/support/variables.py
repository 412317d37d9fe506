"""Works with variables: plain, of Keras, mirrored, of a v1 graph."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from swa_tf.support import checks, compat


def checked_list(
    argument: str,
    var_list: Any,
    *,
    tensors: bool = False,
    wanted: str = "a list of variables",
) -> list[Any]:
    """Returns the `tf.Variable`s of a list, or raises; `tensors` are v1's."""
    if (
        tf.is_tensor(var_list)
        or isinstance(var_list, (str, dict))
        or not isinstance(var_list, Iterable)
    ):
        wanted += ", such as `model.trainable_variables`"
        if isinstance(var_list, compat.VARIABLE_CLASSES):
            var_list = describe([compat.tf_variable(var_list)])
        raise checks.wrong(argument, wanted, var_list, TypeError)
    variables = [compat.tf_variable(v) for v in var_list]
    if not variables:
        raise checks.wrong(argument, "a list of at least one variable", [])
    in_v1 = tensors and outermost_graph() is not None
    kinds = (tf.Variable, tf.Tensor) if in_v1 else tf.Variable
    for variable in variables:
        if not isinstance(variable, kinds):
            compat.check_keras(argument, variable)
            raise TypeError(
                f"`{argument}` must hold variables"
                f"{' (and tensors only in a v1 graph)' if tensors else ''}. "
                f"Received: {checks.shown(variable)}"
            )
    return variables


def describe(variables: Iterable[Any]) -> str:
    """Returns the names and dtypes of variables, for an error."""
    return ", ".join(
        f"'{compat.variable_name(v)}' ({v.dtype.base_dtype.name})"
        for v in variables
    )


def wrong(
    wanted: str,
    variables: Iterable[Any],
    error: type[Exception] = ValueError,
    argument: str = "var_list",
) -> Exception:
    """Returns the error to raise for a list that holds `variables`."""
    return checks.must(argument, f"hold {wanted}", describe(variables), error)


def dtype_of_average(variable: Any) -> tf.DType:
    """Returns float32 for smaller floats, otherwise the variable's dtype."""
    dtype = variable.dtype.base_dtype
    return tf.float32 if dtype.is_floating and dtype.size < 4 else dtype


def outermost_graph() -> tf.Graph | None:
    """Returns the v1 graph under construction; None in TensorFlow 2 code."""
    with tf.init_scope():
        if tf.executing_eagerly():
            return None
        return tf.compat.v1.get_default_graph()


def components(variable: Any) -> Sequence[tf.Variable]:
    """Returns the variables, one for each device, of a `tf.Variable`."""
    return getattr(variable, "values", (variable,))


def component_pairs(
    pairs: Iterable[tuple[Any, Any]],
) -> list[tuple[tf.Variable, Any]]:
    """Returns each component of the targets with the source of its value.

    Given targets with their sources. A component has the one on the same
    device if both are mirrored. Otherwise, or if a source differs between
    replicas, the source is reduced when read.
    """
    found: list[tuple[tf.Variable, Any]] = []
    for target, source in pairs:
        targets, sources = components(target), components(source)
        if len(targets) != len(sources) or is_read_by_replica(source):
            sources = [source] * len(targets)
        found += zip(targets, sources)
    return found


def is_read_by_replica(variable: Any) -> bool:
    """Whether each replica has its own value, and a read may join them."""
    on_read = tf.VariableSynchronization.ON_READ
    return getattr(variable, "synchronization", None) == on_read


def local_variable(value: Any, name: str, device: str | None) -> tf.Variable:
    """Returns a variable that is not mirrored, even in `strategy.scope()`."""
    with tf.device(device):
        made = components(tf.Variable(value, trainable=False, name=name))
    same = [v for v in made if v.device == device]
    return (same or made)[0]


def check_device(device: Any) -> None:
    """Raises unless `device` is one that this process has, or None."""
    if device is None:
        return
    try:
        asked = tf.DeviceSpec.from_string(device)
    except (AttributeError, TypeError, ValueError):
        asked = tf.DeviceSpec()
    if asked.device_type is None:
        wanted = 'the name of a device, such as "/cpu:0", or None'
        raise checks.wrong("device", wanted, device)
    if tf.distribute.has_strategy():
        wanted = "None inside `strategy.scope()`: a strategy places variables"
        raise checks.wrong("device", wanted, device)
    if outermost_graph() is not None:
        return  # the graph may run on another machine
    # TensorFlow would silently take another device for one that is missing.
    local = tf.DeviceSpec(job="localhost", replica=0, task=0)
    devices = [each.name for each in tf.config.list_logical_devices()]
    for each in devices:
        known = local.make_merged_spec(tf.DeviceSpec.from_string(each))
        if known.make_merged_spec(asked) == known:
            return
    raise checks.wrong("device", f"one of {', '.join(devices)}", device)


def strategy_of(variable: Any) -> tf.distribute.Strategy | None:
    """Returns the strategy of a `tf.Variable`; None for a plain one."""
    return getattr(variable, "distribute_strategy", None)


class BoundModule(tf.Module):
    """A module whose variables belong to variables that it does not own.

    A pickle would belong to copies that nobody trains, a `copy.copy` would
    share some of the state: both raise.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(vars(self), memo))
        return copied

    def __reduce__(self) -> Any:
        raise TypeError(
            f"`{type(self).__name__}` cannot be pickled, nor copied by "
            "`copy.copy`: it is bound to the variables of this process. Copy "
            "it together with them by `copy.deepcopy`. For another process "
            "save it with `tf.train.Checkpoint`, and restore it beside its "
            "variables there."
        )


class Untracked:
    """A variable, a list of them, or a dictionary by their `ref()`s, not owned.

    A `tf.Module` does not write it into its checkpoints. A deep copy refers to
    the same variables, or to their copies if the model was copied in the same
    call; values of a dictionary are copied.
    """

    def __init__(self, value: Any) -> None:
        self._value = value
        self._memo: dict[int, Any] = {}

    @property
    def value(self) -> Any:
        if self._memo:
            _add_models(self._memo)
            self._value = _replaced(self._value, self._memo)
            self._memo = {}
        return self._value

    def __deepcopy__(self, memo: dict[int, Any]) -> Untracked:
        value = self.value
        if isinstance(value, dict):
            value = dict(zip(value, copy.deepcopy([*value.values()], memo)))
        copied = Untracked(value)
        # Looked up at the first use: the model may be copied after this.
        copied._memo = memo
        return copied


def _add_models(memo: dict[int, Any]) -> None:
    """Adds the variables of models, which Keras copies by itself."""
    for original in memo.get(id(memo), ()):  # all that was copied
        if isinstance(original, tf.keras.Model) and original.built:
            for old, new in zip(original.weights, memo[id(original)].weights):
                memo[id(compat.tf_variable(old))] = compat.tf_variable(new)


def _replaced(value: Any, memo: dict[int, Any]) -> Any:
    """Returns `value` with the copies of its variables in `memo`, by `id`."""
    if isinstance(value, dict):
        variables = _replaced([key.deref() for key in value], memo)
        return dict(zip((v.ref() for v in variables), value.values()))
    if isinstance(value, list):
        return [_replaced(each, memo) for each in value]
    return memo.get(id(value), value)


def read(variable: Any) -> tf.Tensor:
    """Returns the present value, which no later write changes."""
    if isinstance(variable, tf.Tensor):
        return variable
    if _is_plain_and_eager(variable):
        return tf.raw_ops.ReadVariableOp(
            resource=variable.handle, dtype=variable.dtype
        )
    value = variable.read_value()
    if variable.dtype != variable.dtype.base_dtype:
        # TensorFlow 1's reference variables overwrite values read before.
        value = tf.raw_ops.DeepCopy(x=value)
    return value


def write(variable: tf.Variable, value: tf.Tensor) -> Any:
    """Assigns a value of its dtype and shape; in a graph, returns the op."""
    if _is_plain_and_eager(variable):
        return tf.raw_ops.AssignVariableOp(
            resource=variable.handle, value=value
        )
    return variable.assign(value)


def _is_plain_and_eager(variable: tf.Variable) -> bool:
    """Whether to use raw ops, which take a fifth of the time of methods."""
    return tf.executing_eagerly() and not hasattr(variable, "values")


def initial_value(variable: tf.Variable) -> tf.Tensor:
    """Returns the value of a variable; in a v1 graph, or its initial value.

    A variable that the `tf.function` being traced has made has zeros.
    """
    initialized = tf.compat.v1.is_variable_initialized(variable)
    if not tf.executing_eagerly():
        return tf.cond(
            initialized, lambda: read(variable), lambda: variable.initial_value
        )
    if not initialized:
        return tf.zeros(variable.shape, variable.dtype)
    return variable.read_value()


def held(variables: Iterable[Any]) -> list[tuple[tf.Variable, tf.Tensor]]:
    """Returns each component of variables with its value, uncopied."""
    return [
        (component, read(component))
        for variable in variables
        for component in components(compat.tf_variable(variable))
    ]


def assign(pairs: Iterable[tuple[Any, Any]]) -> Any:
    """Assigns to the first of each pair the second, cast to its dtype."""
    written = [
        write(target, tf.cast(read(source), target.dtype.base_dtype))
        for target, source in component_pairs(pairs)
    ]
    return tf.group(*written)


def all_finite(variables: Iterable[Any]) -> tf.Tensor:
    """Returns whether no element of variables or tensors is NaN or infinite.

    A finite sum of squares shows it in one pass over memory. Another is needed
    only for numbers whose squares overflow.
    """
    values = [
        each if tf.is_tensor(each) else read(compat.tf_variable(each))
        for each in variables
    ]
    sums = [tf.cast(tf.nn.l2_loss(value), tf.float64) for value in values]
    return tf.cond(
        tf.math.is_finite(tf.reduce_sum(sums)),
        lambda: tf.constant(True),
        lambda: tf.reduce_all(
            [tf.reduce_all(tf.math.is_finite(value)) for value in values]
        ),
    )


@contextlib.contextmanager
def all_or_none(restore: Callable[[], None]) -> Iterator[None]:
    """Calls `restore`, such as that of a `snapshot`, if the block raises."""
    try:
        yield
    except BaseException:
        try:
            restore()
        finally:  # again, in case a second interrupt came
            restore()
        raise


def snapshot(variables: Iterable[Any]) -> Callable[[], None]:
    """Returns a function that restores the present values; in eager mode."""
    now = held(variables)

    def restore() -> None:
        for component, value in now:
            write(component, value)

    return restore
