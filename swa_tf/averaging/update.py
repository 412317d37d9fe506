"""The one equation over all variables of a list.

TensorFlow's kernels take some twenty passes over memory, one an operation.
XLA makes them one, but must compile first. Either way gives the same bits (see
`_rounding`): in eager mode each operation runs by itself, without a trace, and
in a graph XLA compiles the update of each variable that is large enough.

Variables that are alike are updated in bundles. Op by op, a bundle is stacked
into one tensor. Compiled, all bundles that are alike share one function, which
is compiled once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import tensorflow as tf

from swa_tf.averaging import rounding
from swa_tf.support import variables as variables_lib

COMPILED_ELEMENTS = 16384
"""The number of elements from which on a graph's update of it is compiled.

A smaller variable takes less time than starting a computation does.
"""

# Members of a bundle: small variables, which are stacked in any case; and large
# ones, which cost time to compile, each, and time to start, each bundle.
_MAX_SMALL_MEMBERS = 128
_MAX_LARGE_MEMBERS, _MAX_LARGE_ELEMENTS = 2, 2**19

_MAX_CACHED_FUNCTIONS = 512


class Update:
    """average <- average + c * (weight - average), for given variables.

    Args:
        pairs: Each average, a variable on one device, with its weight: a
            variable of any kind or, in a v1 graph, a tensor.
    """

    def __init__(self, pairs: Iterable[tuple[tf.Variable, Any]]) -> None:
        alike: dict[Any, list[_Member]] = {}
        for place, (average, weight) in enumerate(pairs):
            kind = _Kind.of(average, weight)
            # What is like nothing else is a bundle by itself.
            key = place if kind is None else kind
            member = _Member(place, average, weight, kind)
            alike.setdefault(key, []).append(member)
        self.n_op_by_op = 0
        self._bundles: list[list[_Member]] = []
        for members in alike.values():
            size = members[0].kind.bundle_size if members[0].kind else 1
            self._bundles += [
                members[start : start + size]
                for start in range(0, len(members), size)
            ]

    def __call__(self, c: tf.Tensor, n_models: tf.Tensor) -> Any:
        """Moves the averages, with the coefficient `c` after `n_models` models.

        `c` is one for all, or a vector with one for each of the pairs.

        Returns:
            In a graph the op that is done when all is.
        """
        threshold = rounding.threshold(n_models)
        zero = None
        if tf.executing_eagerly():
            # Known to Python, they save operations.
            c, threshold = c.numpy(), threshold.numpy()
            self.n_op_by_op += 1
        else:
            zero = tf.cast(tf.equal(n_models, n_models.dtype.min), tf.int32)
        updated = []
        for members in self._bundles:
            own = _coefficients(c, [member.place for member in members])
            kind = members[0].kind
            if zero is not None and kind is not None and kind.is_compiled:
                updated.append(_compiled(members, kind, own, threshold, zero))
            else:
                updated += _op_by_op(members, own, threshold, zero)
        return tf.group(*updated)


class _Kind(NamedTuple):
    """What variables that are updated together have in common."""

    device: str
    shape: tuple[int, ...]
    dtype: tf.DType
    weight_dtype: tf.DType
    is_sent: bool
    """Whether weights come from other devices, as tensors."""

    @classmethod
    def of(cls, average: tf.Variable, weight: Any) -> _Kind | None:
        """The kind of a pair; None for one to be updated by itself."""
        if (
            not isinstance(weight, tf.Variable)
            or variables_lib.outermost_graph() is not None
            or not weight.shape.is_fully_defined()
        ):
            return None
        plain = variables_lib.components(weight)[0] is weight
        return cls(
            average.device,
            tuple(average.shape.as_list()),
            average.dtype,
            weight.dtype,
            not (plain and weight.device == average.device),
        )

    @property
    def is_large(self) -> bool:
        return math.prod(self.shape) >= COMPILED_ELEMENTS

    @property
    def is_compiled(self) -> bool:
        """Whether XLA compiles its update in a graph."""
        return self.is_large and _has_xla(self.device)

    @property
    def bundle_size(self) -> int:
        if not self.is_large:
            return _MAX_SMALL_MEMBERS
        fitting = _MAX_LARGE_ELEMENTS // math.prod(self.shape)
        return max(1, min(_MAX_LARGE_MEMBERS, fitting))


class _Member(NamedTuple):
    """A pair, its place among all pairs, and its kind."""

    place: int
    average: Any
    weight: Any
    kind: _Kind | None


def _coefficients(c: Any, places: list[int]) -> Any:
    """The coefficients of the pairs at `places`; one, where it is the same."""
    if tf.is_tensor(c):
        return tf.gather(c, places) if c.shape.rank else c
    own = set(c[places].tolist()) if c.ndim else {float(c)}
    return own.pop() if len(own) == 1 else c[places]


def _op_by_op(
    members: list[_Member], c: Any, threshold: Any, zero: tf.Tensor | None
) -> list[Any]:
    """Updates a bundle by operations of TensorFlow, in eager mode or a graph.

    Returns:
        In a graph the ops that do it.
    """
    dtype = members[0].average.dtype
    # Read before the device is chosen: only the weight is sent there.
    weights = [_read(member.weight) for member in members]
    with tf.device(members[0].average.device):
        if isinstance(c, float) and c == 1.0:
            values = [tf.cast(weight, dtype) for weight in weights]
        else:
            averages = [
                variables_lib.read(member.average) for member in members
            ]
            values = _moved(averages, weights, c, threshold, zero)
    return [
        variables_lib.write(member.average, value)
        for member, value in zip(members, values)
    ]


def _moved(
    averages: list[tf.Tensor],
    weights: list[tf.Tensor],
    c: Any,
    threshold: Any,
    zero: tf.Tensor | None,
) -> list[tf.Tensor]:
    """The averages moved, stacked where there are several."""
    dtype = averages[0].dtype
    if len(averages) == 1:
        if not isinstance(c, float) and c.shape.rank:
            c = c[0]
        weight = tf.cast(weights[0], dtype)
        return [rounding.moved(averages[0], weight, c, threshold, zero)]
    average, weight = tf.stack(averages), tf.cast(tf.stack(weights), dtype)
    if not isinstance(c, float) and len(c.shape):
        c = tf.reshape(c, [-1, *[1] * (len(average.shape) - 1)])
    moved = rounding.moved(average, weight, c, threshold, zero)
    values: list[tf.Tensor] = tf.unstack(moved)
    return values


def _compiled(
    members: list[_Member],
    kind: _Kind,
    c: tf.Tensor,
    threshold: tf.Tensor,
    zero: tf.Tensor,
) -> tf.Tensor:
    """Updates a bundle by a function that XLA compiles.

    Returns:
        A tensor that is there when it is done.
    """
    weights = [
        variables_lib.read(m.weight) if kind.is_sent else m.weight.handle
        for m in members
    ]
    update = _compiled_function(kind, len(members))
    with tf.device(kind.device):
        averages = [member.average.handle for member in members]
        return update(averages, weights, c, threshold, zero)


@functools.lru_cache(_MAX_CACHED_FUNCTIONS)
def _compiled_function(kind: _Kind, size: int) -> Callable[..., tf.Tensor]:
    """The update of a bundle, given the handles of its variables."""

    def update(
        averages: list[Any],
        weights: list[Any],
        c: tf.Tensor,
        threshold: tf.Tensor,
        zero: tf.Tensor,
    ) -> tf.Tensor:
        each_c = tf.unstack(c) if c.shape.rank else [c] * size
        for handle, weight, own in zip(averages, weights, each_c):
            average = _read_handle(handle, kind.dtype, kind.shape)
            if not kind.is_sent:
                weight = _read_handle(weight, kind.weight_dtype, kind.shape)
            weight = tf.cast(weight, kind.dtype)
            moved = rounding.moved(average, weight, own, threshold, zero)
            tf.raw_ops.AssignVariableOp(resource=handle, value=moved)
        return zero

    return tf.function(update, jit_compile=True, autograph=False)


def _read_handle(handle: Any, dtype: tf.DType, shape: Any) -> tf.Tensor:
    value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)
    value.set_shape(shape)
    return value


def _read(value: Any) -> tf.Tensor:
    """The value of a variable now, after the control dependencies."""
    return (
        variables_lib.read(value) if isinstance(value, tf.Variable) else value
    )


def _has_xla(device: str) -> bool:
    kind = tf.DeviceSpec.from_string(device).device_type
    return bool(tf.test.is_built_with_xla()) and (
        kind == "CPU" or (kind == "GPU" and _compiles(device))
    )


@functools.cache
def _compiles(device: str) -> bool:
    """Whether XLA finds all that it needs of CUDA, which may not be there."""
    with tf.init_scope(), tf.device(device):
        try:
            tf.function(tf.negative, jit_compile=True)(tf.ones([]))
        except tf.errors.OpError:
            return False
    return True
