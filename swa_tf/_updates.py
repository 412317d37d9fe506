"""The one equation over all variables of a model, in one pass over memory.

TensorFlow's own kernels take some fifteen passes: one an operation. XLA makes
them one, but must compile; so it is asked only where updates are many. Both
give the same bits (see `_rounding`), and nothing else depends on which was
taken.

Variables of one shape are updated in bundles, by one function for all bundles
that are alike: it is traced, and compiled, once.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import tensorflow as tf

from swa_tf import _rounding
from swa_tf.support import stack
from swa_tf.support import variables as variables_lib

# Below this number of elements a variable takes less time than starting its
# computation does: such are strung together, and not compiled.
_SMALL = 16384
_BUNDLE_OF_SMALL = 128
# Compiling takes time for each variable of a bundle, starting it for each
# bundle: bundles are of at most so many variables, and about so many elements.
_BUNDLE, _BUNDLE_ELEMENTS = 4, 2**19

# Compiling takes the time of some ten updates that are not compiled.
_MANY = 5
_RARE = 100
# Of variables with this number of elements, in all and on average over their
# kinds, one such update takes longer than compiling, and needs five times the
# memory of the average while it runs.
_HUGE = 50_000_000

# Functions that are kept: three for each shape of the last few models.
_MOST = 512


class Update:
    """average <- average + c * (weight - average), for given variables.

    Args:
        pairs: Each average, a variable on one device, with its weight: a
            variable of any kind or, in a v1 graph, a tensor.
    """

    def __init__(self, pairs: Iterable[tuple[tf.Variable, Any]]) -> None:
        alike: dict[_Kind, list[_Member]] = {}
        self._others: list[_Member] = []
        for place, (average, weight) in enumerate(pairs):
            member = _Member(place, average, weight)
            kind = _Kind.of(average, weight)
            if kind is None:
                self._others.append(member)
            else:
                alike.setdefault(kind, []).append(member)
        bundles = [
            _Bundle(kind, members[start : start + kind.bundle_size])
            for kind, members in alike.items()
            for start in range(0, len(members), kind.bundle_size)
        ]
        self._small = [bundle for bundle in bundles if bundle.kind.is_small]
        self._large = [bundle for bundle in bundles if not bundle.kind.is_small]
        self._can_compile = bool(self._large) and all(
            _has_xla(bundle.kind.device) for bundle in self._large
        )
        self._is_huge = _are_huge(self._large)

    def compiles(self, wanted: bool) -> bool:
        """Whether XLA compiles this update, which may be wanted or not."""
        return self._can_compile and (wanted or self._is_huge)

    def __call__(self, c: tf.Tensor, n_models: tf.Tensor, compiled: Any) -> Any:
        """The update, with the coefficient `c` after `n_models` models.

        `c` is one for all, or a vector with one for each of the pairs.
        `compiled` says whether XLA is wanted: a bool, or in a graph a scalar
        tensor.

        Returns:
            In a graph the op that is done when all is.
        """
        threshold = _rounding.threshold(n_models)
        zero = tf.cast(tf.equal(n_models, n_models.dtype.min), tf.int32)

        # Not in a branch: to read what is sent may reduce it over replicas.
        weights = [bundle.weights() for bundle in self._large]

        def large(compile: bool) -> Any:
            return tf.group(
                *(
                    bundle.update(compile, given, c, threshold, zero)
                    for bundle, given in zip(self._large, weights)
                )
            )

        moved = [
            bundle.update(False, bundle.weights(), c, threshold, zero)
            for bundle in self._small
        ]
        if self.compiles(False) == self.compiles(True):
            moved.append(large(self.compiles(True)))
        elif isinstance(compiled, bool):
            moved.append(large(compiled))
        else:
            moved.append(
                tf.cond(compiled, lambda: large(True), lambda: large(False))
            )
        for place, average, weight in self._others:
            value = average.read_value()
            weight = _value(weight, value)
            with tf.device(average.device):  # only the weight is sent there
                own = c[place] if c.shape.rank else c
                value = _rounding.moved(value, weight, own, threshold)
            moved.append(average.assign(value))
        return tf.group(*moved)


class Pace:
    """Whether updates come so often that to compile them pays.

    An average that takes one model an epoch does not.
    """

    def __init__(self) -> None:
        self._last = -math.inf
        self._close = 0

    def is_fast(self, period: int) -> bool:
        """To be asked at each call, one in `period` of which averages."""
        now = time.monotonic()
        if self._close < _MANY:
            close = (now - self._last) * period < 1.0
            self._close = self._close + 1 if close else 0
        self._last = now
        return self._close >= _MANY


def many_in_a_graph(n_models: tf.Tensor, period: int) -> Any:
    """The same for a compiled training step, that knows of no time."""
    return False if period > _RARE else n_models >= _MANY


class _Kind(NamedTuple):
    """What variables have in common that one function can update."""

    device: str
    shape: tuple[int, ...]
    dtype: tf.DType
    weight_dtype: tf.DType
    is_sent: bool
    """Whether weights come from other devices, as tensors."""

    @classmethod
    def of(cls, average: tf.Variable, weight: Any) -> _Kind | None:
        """None of what no function is made for."""
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
    def is_small(self) -> bool:
        return math.prod(self.shape) < _SMALL

    @property
    def splits_flat(self) -> bool:
        """Whether it is quicker flat, in a branch, than as it is."""
        on = tf.DeviceSpec.from_string(self.device).device_type
        is_free = on == "CPU" and stack.BRANCHES_TAKE_VIEWS
        return is_free and len(self.shape) > 1

    @property
    def bundle_size(self) -> int:
        if self.is_small:
            return _BUNDLE_OF_SMALL
        fitting = _BUNDLE_ELEMENTS // math.prod(self.shape)
        return max(1, min(_BUNDLE, fitting))


class _Member(NamedTuple):
    place: int
    average: Any
    weight: Any


class _Bundle(NamedTuple):
    kind: _Kind
    members: list[_Member]

    def weights(self) -> list[Any]:
        """What the function is given of each: a handle, or a value sent."""
        return [
            variables_lib.read(member.weight)
            if self.kind.is_sent
            else member.weight.handle
            for member in self.members
        ]

    def update(
        self,
        compile: bool,
        weights: list[Any],
        c: tf.Tensor,
        threshold: tf.Tensor,
        zero: tf.Tensor,
    ) -> Any:
        """Starts the functions; in a graph, the op that waits for them."""
        # What need not be one computation is traced once, for one variable.
        whole = compile or self.kind.is_small
        at_a_time = len(self.members) if whole else 1
        update = _function(self.kind, at_a_time, compile)
        done = []
        for start in range(0, len(self.members), at_a_time):
            end = start + at_a_time
            places, averages, _ = zip(*self.members[start:end])
            with tf.device(self.kind.device):
                updated = update(
                    [average.handle for average in averages],
                    weights[start:end],
                    tf.gather(c, places) if c.shape.rank else c,
                    threshold,
                    zero,
                )
            done.append(updated)
        return tf.group(*done)


def _are_huge(bundles: list[_Bundle]) -> bool:
    sizes = [math.prod(b.kind.shape) * len(b.members) for b in bundles]
    return sum(sizes) >= _HUGE * len({bundle.kind for bundle in bundles})


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


@functools.lru_cache(_MOST)
def _function(kind: _Kind, size: int, compile: bool) -> Callable[..., Any]:
    """The update of a bundle, given the handles of its variables."""
    # XLA deals out the first dimension to the processors: of two, one has twice
    # the work of the other where that is 3, as in a convolution. Flat, each
    # has as much as the others. But XLA would fuse the reshaping with the sum,
    # and then copy; not so where the sum is in a branch that may not be taken.
    flat = compile and kind.splits_flat

    def read(handle: Any, dtype: tf.DType) -> tf.Tensor:
        value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)
        value.set_shape(kind.shape)
        return value

    def update(
        averages: list[Any],
        weights: list[Any],
        c: tf.Tensor,
        threshold: tf.Tensor,
        zero: tf.Tensor,
    ) -> tf.Tensor:
        values = [
            (
                read(average, kind.dtype),
                weight if kind.is_sent else read(weight, kind.weight_dtype),
            )
            for average, weight in zip(averages, weights)
        ]
        each_c = tf.unstack(c) if c.shape.rank else [c] * size
        if kind.is_small:
            values = [tuple(tf.stack(each) for each in zip(*values))]
            if c.shape.rank:
                each_c = [tf.reshape(c, [size, *(1 for _ in kind.shape)])]
        if flat:
            values = [
                tuple(tf.reshape(x, [-1]) for x in pair) for pair in values
            ]

        def all_moved() -> list[tf.Tensor]:
            return [
                _rounding.moved(
                    average,
                    tf.cast(weight, kind.dtype),
                    own,
                    threshold,
                    zero if compile else None,
                )
                for (average, weight), own in zip(values, each_c)
            ]

        if flat:
            unmoved = [average for average, _ in values]
            # `zero` is 0, so always; but XLA cannot know.
            moved = tf.cond(zero < 2, all_moved, lambda: unmoved)
            moved = [tf.reshape(value, kind.shape) for value in moved]
        else:
            moved = all_moved()
        if kind.is_small:
            moved = tf.unstack(moved[0], size)
        for average, value in zip(averages, moved):
            tf.raw_ops.AssignVariableOp(resource=average, value=value)
        return zero  # something to wait for

    if compile:
        return tf.function(update, jit_compile=True, autograph=False)
    # Not inlined, or a graph would have fifteen nodes for each variable.
    return tf.function(
        update, autograph=False, experimental_attributes={"_noinline": True}
    )


def _value(weight: Any, average: tf.Tensor) -> tf.Tensor:
    """The weight now, after the control dependencies, in `average`'s dtype."""
    if isinstance(weight, tf.Variable):
        weight = variables_lib.read(weight)
    return tf.cast(weight, average.dtype)
