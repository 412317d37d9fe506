"""Forward passes that collect batch-norm moments, traced once a shape."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from swa_tf.batch_norm import interception, moments, replicas
from swa_tf.support import model_parts, progress
from swa_tf.support import variables as variables_lib

_CALLING_OPS = ("PartitionedCall", "While", "If", "Case")
"""Ends of the names of ops that call a function, a loop or a condition."""


class ForwardPass:
    """The model in inference mode, but for layers that normalize by batch.

    It is traced for the specs of the data set, or else for those of a batch,
    with unknown sizes where batches differ. A `tf.function` alone would trace
    twice where the last batch is short, and warn of each new trace.

    Layers that the model itself calls with `training=False` do what they always
    do. A trace in training mode, which never runs, tells which they are.
    """

    def __init__(self, model: Any, layers: list[Any]) -> None:
        self._layers = layers
        self._accumulators = moments.Accumulators(
            [layer.moving_mean.shape.num_elements() for layer in layers]
        )
        self._model = model
        self._strategy = replicas.strategy_of(layers[0].moving_mean)
        self._traces: list[tuple[Any, Any]] = []  # specs of inputs, function
        self._trains = [[True]] * len(layers)  # whether each call of each does
        # What follows is of use while the model is traced.
        self._inlines = False
        self._graph: Any = None
        self._found = threading.local()  # each replica is traced in a thread
        self._shared: dict[Any, Any] = {}

    def run(
        self,
        dataset: Iterable[Any],
        steps: int | None,
        argument: str,
        verbose: int = 0,
    ) -> tuple[int, list[tuple[Any, moments.Statistics]]]:
        """Returns the number of batches taken, and layers with statistics.

        These are the layers that training trains; without any, no batch is
        taken. Every variable that the model may have changed is restored.
        """
        dataset = replicas.distributed(
            self._strategy, dataset, _inputs_of, argument
        )
        self._accumulators.reset()
        specs = _inputs_of(getattr(dataset, "element_spec", None))
        flat = tf.nest.flatten(specs, expand_composites=True)
        if any(spec is None or spec.shape.rank is None for spec in flat):
            specs = None
        function: Any = None
        taken = 0
        with contextlib.ExitStack() as undo:
            bar = progress.bar("refitting batch norm", verbose > 0)
            show = undo.enter_context(bar)
            for batch in itertools.islice(dataset, steps):
                inputs = _inputs_of(batch)
                if inputs is None:
                    raise TypeError(
                        f"`{argument}` must hold batches of inputs. "
                        f"Received in it: {batch!r}"
                    )
                inputs = tf.nest.map_structure(_tensor, inputs)
                own = tf.nest.map_structure(tf.type_spec_from_value, inputs)
                common = _common(specs, own)
                if function is None or common != specs:
                    specs, function = self._trace_for(common)
                    undo.callback(variables_lib.snapshot(function.variables))
                    if not any(map(any, self._trains)):
                        break
                function(inputs)
                taken += 1
                show(taken, steps)
            found = zip(self._layers, self._accumulators.read())
            return taken, [*itertools.compress(found, map(any, self._trains))]

    def _trace_for(self, wanted: Any) -> tuple[Any, Any]:
        """Returns the last trace that takes inputs of the specs `wanted`."""
        for specs, function in reversed(self._traces):
            if _common(specs, wanted) == specs:
                return specs, function
        if not self._traces:
            self._traced(wanted, training=True)
        function = self._traced(wanted, training=False)
        self._traces.append((wanted, function))
        return wanted, function

    def _traced(self, specs: Any, training: bool) -> Any:
        function = tf.function(
            lambda inputs: self._all_replicas(inputs, training), autograph=False
        )
        with _inlining(self._inlines):
            function = function.get_concrete_function(specs)
        if not self._inlines and self._hides_layers(function.graph):
            self._inlines = True
            return self._traced(specs, training)
        return function

    def _all_replicas(self, inputs: Any, training: bool) -> None:
        self._graph = tf.compat.v1.get_default_graph()
        self._shared = {}
        with interception.intercepted(self._layers, self._normalize):
            if self._strategy is None:
                found = self._forward(inputs, training)
            else:
                of_all = self._strategy.run(self._forward, (inputs, training))
                local = self._strategy.experimental_local_results
                found = tf.nest.map_structure(lambda x: local(x)[0], of_all)
        if training:
            self._trains = [calls or [True] for calls in found]
        else:
            self._accumulators.merge(found)

    def _forward(self, inputs: Any, training: bool) -> list[list[Any]]:
        """Returns what `_normalize` has found for each layer."""
        self._found.of = [[] for _ in self._layers]
        self._found.training = training
        self._found.calls = [*map(iter, self._trains)]
        if self._strategy is not None:
            inputs, self._found.empty = replicas.filled(inputs)
        self._model(inputs, training=training)
        return list(self._found.of)

    def _is_traced_here(self) -> bool:
        """Whether a call is in this trace, and not in another thread."""
        graph: Any = tf.compat.v1.get_default_graph()
        while self._inlines and graph not in (None, self._graph):
            # It may be that of a loop or a condition.
            graph = getattr(graph, "outer_graph", None)
        return graph is self._graph

    def _normalize(self, layer: Any, given: Mapping[str, Any]) -> Any:
        """Normalizes by the batch, or in training mode notes whether to."""
        if not self._is_traced_here():
            return None
        inputs, mask = given["inputs"], given.get("mask")
        [number] = (n for n, each in enumerate(self._layers) if each is layer)
        if self._found.training:
            training = given.get("training")
            trains = bool(tf.is_tensor(training) or training)
            self._found.of[number].append(trains)
            return tf.cast(inputs, layer.compute_dtype)
        # A call that training does not make counts if any other does.
        if not next(self._found.calls[number], any(self._trains[number])):
            return None
        batch = moments.batch_moments(layer, inputs, mask, self._call)
        outermost = tf.compat.v1.get_default_graph() is self._graph
        if self._strategy is not None:
            batch = replicas.merged(layer, batch, self._found.empty, outermost)
        if outermost:
            self._found.of[number].append(batch)
        else:  # inside a loop or a condition, out of reach from here
            alone = [[batch] if each is layer else [] for each in self._layers]
            self._accumulators.merge(alone)
        return moments.normalize(layer, inputs, *batch[1:], self._call)

    def _call(self, function: Any, *tensors: Any, **settings: Any) -> Any:
        """Calls a function of tensors that all layers share in the graph.

        TensorFlow then optimizes it once, and not once a layer. No tensor may
        be a constant: TensorFlow would copy the function for each.
        """
        specs = [
            None if x is None else tf.TensorSpec([None] * x.shape.rank, x.dtype)
            for x in tensors
        ]
        key = (function, *specs, *settings.items())
        if key not in self._shared:
            self._shared[key] = tf.function(
                lambda *tensors: function(*tensors, **settings),
                autograph=False,
                experimental_attributes={"_noinline": True},
            ).get_concrete_function(*specs)
        return self._shared[key](*tensors)

    def _hides_layers(self, graph: Any) -> bool:
        """Whether a function, loop or condition in a graph uses a layer.

        It then takes the handles of the layer's statistics as inputs.
        """
        handles = {
            id(component.handle)
            for statistic in model_parts.statistics(self._layers)
            for component in variables_lib.components(statistic)
        }
        taken = {id(x) for handle, x in graph.captures if id(handle) in handles}
        return any(
            id(x) in taken
            for op in graph.get_operations()
            if op.type.endswith(_CALLING_OPS)
            for x in op.inputs
        )


@contextlib.contextmanager
def _inlining(inlines: bool) -> Iterator[None]:
    """Makes a trace inline the `tf.function`s that it calls, if `inlines`.

    A trace of one from before has the layer's own `call` in it, and one of this
    pass must not be used after it. Meanwhile other threads run op by op.
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(before or inlines)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def _inputs_of(batch: Any) -> Any:
    """Returns x of a batch x, (x,), (x, y) or (x, y, sample_weight)."""
    return tf.keras.utils.unpack_x_y_sample_weight(batch)[0]


def _tensor(value: Any) -> Any:
    if tf.is_tensor(value) or isinstance(value, replicas.DISTRIBUTED):
        return value
    return tf.convert_to_tensor(value)


def _common(known: Any, specs: Any) -> Any:
    """Returns specs that take inputs of both; `specs` if there are none."""
    if known is None:
        return specs
    try:
        return tf.nest.map_structure(
            lambda a, b: a.most_specific_common_supertype([b]) or b,
            known,
            specs,
        )
    except (TypeError, ValueError):
        return specs
