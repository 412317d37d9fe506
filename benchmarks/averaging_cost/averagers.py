"""The ways to average weights, as steps to be timed, and the floor.

`WAYS` has them by name. Each makes its averages in its first call. The last
four stand for swapping the averages in and back.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

import swa_tf
from benchmarks.averaging_cost.weights import Shapes, Weights
from benchmarks.common import timing

_EMA = 0.999
_RATE = 1e-6
# Calls before those that count: compilation, if any, is over by then.
WARM_UP = 8
APPLY_WARM_UP = 60  # An eager `apply` is compiled after 50 updates.
# Copies of the weights that temporary tensors take, at most.
_TEMPORARIES = 5


class Way(NamedTuple):
    """One way to average.

    Attributes:
        make: From `Weights` to the step, all of its set-up included.
        uses: The attributes of `Weights` that it wants, made before.
        beyond: The way that does all but the averaging: what counts is the
            difference.
        needs: A package that may be absent.
        copies: Of the weights: those that it keeps.
    """

    make: Callable[[Weights], timing.Step]
    uses: tuple[str, ...] = ("variables",)
    beyond: str | None = None
    needs: str | None = None
    copies: int = 1

    @property
    def absent(self) -> bool:
        """Whether the package that it needs is not installed."""
        return bool(self.needs) and not importlib.util.find_spec(self.needs)


def fits(names: Sequence[str], n_parameters: int, n_bytes: int) -> bool:
    """Returns whether ways fit into so much memory in one process."""
    made = {use for name in names for use in WAYS[name].uses}
    copies = len(made) + sum(WAYS[name].copies for name in names)
    return 4 * n_parameters * (copies + _TEMPORARIES) <= n_bytes


def measure(
    model_shapes: Shapes, names: Sequence[str], rounds: int
) -> dict[str, dict[str, Any]]:
    """Times some ways against each other, in this process.

    Args:
        model_shapes: Of the weights.
        names: The ways, of `WAYS`, none of them absent.
        rounds: How many calls of each count.

    Returns:
        What `timing.measure` does, without the memory of the given.
    """
    given = Weights(model_shapes)
    for name in names:
        for use in WAYS[name].uses:
            getattr(given, use)
    # TensorFlow's own start is not a part of anybody's first call.
    tf.function(lambda x: x + 1.0)(tf.ones([]))
    return timing.measure(
        {name: functools.partial(WAYS[name].make, given) for name in names},
        rounds,
        WARM_UP,
    )


def _floor(given: Weights) -> timing.Step:
    sums = [tf.Variable(tf.zeros_like(w)) for w in given.variables]

    @tf.function
    def step() -> None:
        for total, weight in zip(sums, given.variables):
            total.assign_add(weight)

    return timing.Step(step)


def _apply(given: Weights) -> timing.Step:
    swa = swa_tf.StochasticWeightAveraging()
    return timing.Step(
        lambda: swa.apply(given.keras_variables), warm_up=APPLY_WARM_UP
    )


def _apply_in_function(given: Weights) -> timing.Step:
    swa = swa_tf.StochasticWeightAveraging()

    @tf.function
    def step() -> None:
        swa.apply(given.keras_variables)

    return timing.Step(step)


def _plain(given: Weights) -> timing.Step:
    averages = [tf.Variable(w) for w in given.variables]
    count = tf.Variable(1.0)

    @tf.function
    def step() -> None:
        c = 1.0 / count.assign_add(1.0)
        for average, weight in zip(averages, given.variables):
            average.assign(average + (weight - average) * c)

    return timing.Step(step)


def _tensorflow_ema(given: Weights) -> timing.Step:
    ema = tf.train.ExponentialMovingAverage(_EMA)

    @tf.function
    def step() -> None:
        ema.apply(given.variables)

    return timing.Step(step)


def _optimizer(make: Callable[[], Any], given: Weights) -> timing.Step:
    optimizer = make()
    if hasattr(optimizer, "build"):
        optimizer.build(given.keras_variables)

    @tf.function
    def step() -> None:
        optimizer.apply_gradients(zip(given.gradients, given.keras_variables))

    return timing.Step(step)


def _inner_sgd() -> Any:
    return tf.keras.optimizers.legacy.SGD(_RATE)


def _addons_swa() -> Any:
    import tensorflow_addons as tfa

    return tfa.optimizers.SWA(_inner_sgd(), start_averaging=0, average_period=1)


def _addons_moving_average() -> Any:
    import tensorflow_addons as tfa

    return tfa.optimizers.MovingAverage(_inner_sgd(), average_decay=_EMA)


def _torch(fused: bool, given: Weights) -> timing.Step:
    from torch.optim import swa_utils

    module = given.torch_module
    multi = {"multi_avg_fn": swa_utils.get_swa_multi_avg_fn()} if fused else {}
    averaged = swa_utils.AveragedModel(module, **multi)
    return timing.Step(lambda: averaged.update_parameters(module))


def _one_copy(given: Weights) -> timing.Step:
    weights = [w.numpy() for w in given.variables]
    copies = [np.empty_like(w) for w in weights]

    def step() -> None:
        for copy, weight in zip(copies, weights):
            np.copyto(copy, weight)

    return timing.Step(step)


def _use_up_free_memory(given: Weights) -> list[tf.Tensor]:
    """Returns tensors to be kept: the next one makes the process grow."""
    largest = max(given.gradients, key=tf.size)
    start, kept = timing.memory(), []
    while (
        timing.memory() - start < 2 * int(tf.size(largest)) and len(kept) < 64
    ):
        kept.append(tf.zeros_like(largest))
    return kept


def _swap_of(given: Weights) -> Callable[[], None]:
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply(given.keras_variables)
    # Now weights and averages may share memory; an update parts them.
    for gradient, weight in zip(given.gradients, given.variables):
        weight.assign_add(gradient)

    def swap() -> None:
        with swa_tf.averaged_weights(swa, given.keras_variables):
            pass

    return swap


def _swap(given: Weights) -> timing.Step:
    swap = _swap_of(given)
    kept = _use_up_free_memory(given)

    def step(_kept: Any = kept) -> None:
        swap()

    return timing.Step(step)


def _update(after_swap: bool, given: Weights) -> timing.Step:
    """Adds a gradient in place: the least that an optimizer does."""

    @tf.function
    def update() -> None:
        for gradient, weight in zip(given.gradients, given.variables):
            weight.assign_add(gradient)

    return timing.Step(update, _swap_of(given) if after_swap else update)


_SGD = ("variables", "gradients")
FLOOR, APPLY, IN_FUNCTION = "floor: a += w", "apply", "apply in a tf.function"
COPY, SWAP = "one copy", "swap in and back"
UPDATE, UPDATE_AFTER = "update in place", "the first one after a swap"
AVERAGING: dict[str, Way] = {
    FLOOR: Way(_floor),
    APPLY: Way(_apply),
    IN_FUNCTION: Way(_apply_in_function),
    "plain formula": Way(_plain),
    "tf.train.ExponentialMovingAverage": Way(_tensorflow_ema),
    "Keras SGD": Way(
        functools.partial(_optimizer, lambda: tf.keras.optimizers.SGD(_RATE)),
        _SGD,
        copies=0,
    ),
    "Keras use_ema": Way(
        functools.partial(
            _optimizer,
            lambda: tf.keras.optimizers.SGD(
                _RATE, use_ema=True, ema_momentum=_EMA
            ),
        ),
        _SGD,
        beyond="Keras SGD",
    ),
    "legacy SGD": Way(
        functools.partial(_optimizer, _inner_sgd),
        _SGD,
        copies=0,
        needs="tensorflow_addons",
    ),
    "tfa SWA": Way(
        functools.partial(_optimizer, _addons_swa),
        _SGD,
        beyond="legacy SGD",
        needs="tensorflow_addons",
    ),
    "tfa MovingAverage": Way(
        functools.partial(_optimizer, _addons_moving_average),
        _SGD,
        beyond="legacy SGD",
        needs="tensorflow_addons",
    ),
    "torch AveragedModel": Way(
        functools.partial(_torch, False),
        ("torch_module",),
        needs="torch",
    ),
    "torch AveragedModel (fused)": Way(
        functools.partial(_torch, True),
        ("torch_module",),
        needs="torch",
    ),
}
SWAPPING: dict[str, Way] = {
    COPY: Way(_one_copy, copies=2),
    SWAP: Way(_swap, _SGD),
    UPDATE: Way(functools.partial(_update, False), _SGD),
    UPDATE_AFTER: Way(functools.partial(_update, True), _SGD),
}
WAYS = {**AVERAGING, **SWAPPING}
