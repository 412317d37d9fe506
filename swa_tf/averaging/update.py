"""The one equation over all variables of a list, stacked or compiled."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from swa_tf.averaging import rounding
from swa_tf.support import variables as variables_lib

# To update a smaller variable takes less time than to start a computation.
COMPILED_ELEMENTS = 16384

_MAX_STACKED = 128
_MAX_CACHED_LISTS = 8
_MAX_CACHED_FUNCTIONS = 512


class Update:
    """The update of averages, each on one device, by weights of any kind."""

    def __init__(self, pairs: Sequence[tuple[tf.Variable, Any]]) -> None:
        alike: dict[Any, list[int]] = {}
        for place, pair in enumerate(pairs):
            alike.setdefault(_Kind.of(*pair) or place, []).append(place)
        self._bundles = []
        for key, places in alike.items():
            kind = key if isinstance(key, _Kind) else None
            size = 1 if kind is None or kind.is_large else _MAX_STACKED
            for start in range(0, len(places), size):
                own = places[start : start + size]
                averages, weights = zip(*[pairs[place] for place in own])
                self._bundles.append(_Bundle(kind, own, averages, weights))

    def __call__(self, c: tf.Tensor, n_models: tf.Tensor) -> Any:
        """Moves the averages by `c`, a scalar or a vector with one for each."""
        c, threshold, zero = rounding.settings(c, n_models)
        updated = []
        for bundle in self._bundles:
            kind, own_c = bundle.kind, _coefficients(c, bundle.places)
            if zero is not None and kind and _is_compiled(kind):
                updated.append(_compiled(bundle, own_c, threshold, zero))
            else:
                updated += _op_by_op(bundle, own_c, threshold, zero)
        return tf.group(*updated)


@dataclasses.dataclass
class ListUpdate:
    """The update of a list of variables that was given to `apply`."""

    variables: list[Any]
    move: Update
    given: Sequence[Any] = ()  # the list, in the cache
    n_op_by_op: int = 0  # how often it ran op by op
    traced: Callable[..., Any] | None = None


class UpdateCache:
    """The updates used last, by the identities of the variables given."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], ListUpdate] = {}

    def __deepcopy__(self, memo: Any) -> UpdateCache:
        return UpdateCache()  # of the variables of the copy

    def get(self, given: Sequence[Any]) -> ListUpdate | None:
        """Returns the update of the same variables, or None."""
        key = tuple(map(id, given))
        if key in self._known:
            self._known[key] = self._known.pop(key)  # now the latest
        return self._known.get(key)

    def add(self, given: Sequence[Any], update: ListUpdate) -> None:
        """Adds an update, which keeps its variables and so their identities."""
        update.given = [*given]
        self._known[tuple(map(id, given))] = update
        if len(self._known) > _MAX_CACHED_LISTS:
            del self._known[next(iter(self._known))]


class _Kind(NamedTuple):
    """The properties that pairs of one bundle share."""

    device: str
    shape: tuple[int, ...]
    dtype: tf.DType
    weight_dtype: tf.DType
    is_sent: bool  # whether the weight comes from another device, as a tensor

    @classmethod
    def of(cls, average: tf.Variable, weight: Any) -> _Kind | None:
        """Returns the kind of a pair; None for one to be updated by itself."""
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


class _Bundle(NamedTuple):
    """Averages and weights of one kind, with their places among all pairs."""

    kind: _Kind | None
    places: list[int]
    averages: Sequence[Any]
    weights: Sequence[Any]


def _coefficients(c: Any, places: list[int]) -> Any:
    """Returns one, if that is all, or a vector of those at `places`."""
    if tf.is_tensor(c):
        at = places if len(places) > 1 else places[0]
        return tf.gather(c, at) if c.shape.rank else c
    own = set(c[places].tolist()) if c.ndim else {float(c)}
    return own.pop() if len(own) == 1 else c[places]


def _op_by_op(
    bundle: _Bundle, c: Any, threshold: Any, zero: tf.Tensor | None
) -> list[Any]:
    """Updates a bundle, stacked, by operations; in a graph returns the last."""
    dtype = bundle.averages[0].dtype
    # Read before the device is chosen: only the weight is sent there.
    weights = [variables_lib.read(weight) for weight in bundle.weights]
    with tf.device(bundle.averages[0].device):
        if isinstance(c, float) and c == 1.0:  # the first update, half the work
            values = [tf.cast(weight, dtype) for weight in weights]
        elif len(weights) == 1:
            average = variables_lib.read(bundle.averages[0])
            weight = tf.cast(weights[0], dtype)
            values = [rounding.moved(average, weight, c, threshold, zero)]
        else:
            average = tf.stack([variables_lib.read(v) for v in bundle.averages])
            weight = tf.cast(tf.stack(weights), dtype)
            if not isinstance(c, float) and len(c.shape):
                c = tf.reshape(c, [-1, *[1] * (len(average.shape) - 1)])
            moved = rounding.moved(average, weight, c, threshold, zero)
            values = tf.unstack(moved)
    return [
        variables_lib.write(average, value)
        for average, value in zip(bundle.averages, values)
    ]


def _compiled(
    bundle: _Bundle, c: tf.Tensor, threshold: tf.Tensor, zero: tf.Tensor
) -> tf.Tensor:
    """Updates a large average by a function that XLA compiles."""
    kind: Any = bundle.kind
    (average,), (weight,) = bundle.averages, bundle.weights
    weight = variables_lib.read(weight) if kind.is_sent else weight.handle
    with tf.device(kind.device):
        return _compiled_function(kind)(
            average.handle, weight, c, threshold, zero
        )


@functools.lru_cache(_MAX_CACHED_FUNCTIONS)
def _compiled_function(kind: _Kind) -> Callable[..., tf.Tensor]:
    """Returns the update of one average, given the handles of its variables."""

    def update(
        handle: Any, weight: Any, c: tf.Tensor, threshold: Any, zero: tf.Tensor
    ) -> tf.Tensor:
        average = _read_handle(handle, kind.dtype, kind.shape)
        if not kind.is_sent:
            weight = _read_handle(weight, kind.weight_dtype, kind.shape)
        weight = tf.cast(weight, kind.dtype)
        moved = rounding.moved(average, weight, c, threshold, zero)
        tf.raw_ops.AssignVariableOp(resource=handle, value=moved)
        return zero

    return tf.function(update, jit_compile=True, autograph=False)


def _read_handle(handle: Any, dtype: tf.DType, shape: Any) -> tf.Tensor:
    value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)
    value.set_shape(shape)
    return value


def _is_compiled(kind: _Kind) -> bool:
    """Whether XLA compiles the update of a variable in a graph."""
    if not kind.is_large or not tf.test.is_built_with_xla():
        return False
    device = tf.DeviceSpec.from_string(kind.device).device_type
    return device == "CPU" or (device == "GPU" and _compiles(kind.device))


@functools.cache
def _compiles(device: str) -> bool:
    """Whether XLA finds all that it needs of CUDA, which may not be there."""
    with tf.init_scope(), tf.device(device):
        try:
            tf.function(tf.negative, jit_compile=True)(tf.ones([]))
        except tf.errors.OpError:
            return False
    return True
