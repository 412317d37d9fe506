"""Forward passes that collect batch-norm moments, traced once a shape."""

from __future__ import annotations

import collections
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from swa_tf.batch_norm import interception, moments, replicas
from swa_tf.support import variables as variables_lib


class ArgumentNames(NamedTuple):
    """The names of the arguments of a refit, for its errors.

    `level` is the `stacklevel` of its warnings.
    """

    model: str = "model"
    dataset: str = "dataset"
    steps: str = "steps"
    level: int = 3


class _Trace(NamedTuple):
    specs: Any
    run: Callable[[Any], Any]
    variables: list[tf.Variable]


class ForwardPass:
    """The model in inference mode, but for layers that normalize by batch.

    It is traced for the specs of the data set, or else for those of a batch,
    with unknown sizes where batches differ. A `tf.function` alone would trace
    twice where the last batch is short, and warn of each new trace.

    On several replicas, of one process or of many, each takes a part of every
    batch and normalizes by the moments of the whole batch. So they compute
    what one replica would.

    Args:
        model: The model, called as `model(inputs, training=False)`.
        layers: The layers of it whose moments are collected.
        kinds: The classes that normalize; a user's derive from them.
    """

    def __init__(
        self, model: Any, layers: list[Any], kinds: tuple[type, ...]
    ) -> None:
        self.layers = layers
        self.accumulators = moments.Accumulators(
            [layer.moving_mean.shape.num_elements() for layer in layers]
        )
        self._model = model
        self._kinds = kinds
        self._strategy = replicas.strategy_of(layers[0].moving_mean)
        self._traces: list[_Trace] = []
        self._trace: Any = None
        self._saved: dict[int, Callable[[], None]] = {}

    def run(
        self, dataset: Iterable[Any], steps: int | None, argument: str
    ) -> int:
        """Forgets all samples, and takes the batches of `dataset`.

        `argument` is what the caller calls it, for the errors.

        Returns:
            The number of batches taken, at most `steps`.
        """
        self.accumulators.reset()
        self._trace = None
        if self._strategy is not None:
            dataset = replicas.distributed(
                self._strategy, dataset, lambda batch: (_inputs_of(batch),)
            )
        elif replicas.is_distributed(dataset):
            replicas.check_one_replica(dataset, argument)
        specs = _inputs_of(getattr(dataset, "element_spec", None))
        if specs is not None and _have_ranks(specs):
            self._use(specs)
        taken = 0
        for batch in itertools.islice(dataset, steps):
            inputs = _inputs_of(batch)
            if inputs is None:
                raise TypeError(
                    f"`{argument}` must hold batches of inputs. "
                    f"Received in it: {batch!r}"
                )
            inputs = tf.nest.map_structure(_tensor, inputs)
            specs = tf.nest.map_structure(tf.type_spec_from_value, inputs)
            if self._trace is None or not _fits(specs, self._trace.specs):
                self._use(specs)
            self._trace.run(inputs)
            taken += 1
        return taken

    def put_back(self) -> None:
        """Restores the variables that the pass captured, such as counters."""
        for restore in self._saved.values():
            restore()
        self._saved = {}

    def _use(self, specs: Any) -> None:
        """Takes or makes a trace for `specs`; saves what it may change."""
        fitting = [each for each in self._traces if _fits(specs, each.specs)]
        if not fitting:
            if self._trace is not None and _alike(specs, self._trace.specs):
                specs = tf.nest.map_structure(
                    lambda a, b: a.most_specific_common_supertype([b]) or b,
                    self._trace.specs,
                    specs,
                    check_types=False,
                )
            fitting = [self._traced(specs)]
            self._traces += fitting
        self._trace = fitting[-1]
        for variable in self._trace.variables:
            if id(variable) not in self._saved:
                self._saved[id(variable)] = variables_lib.snapshot([variable])

    def _traced(self, specs: Any) -> _Trace:
        tracing = _Tracing(self)
        run = tracing.trace(specs)
        if tracing.met_functions or _calls_functions(run, tracing.names):
            with _inlined_functions():
                run = _Tracing(self, inlined=True).trace(specs)
        ours = {id(each) for each in self.accumulators.variables}
        variables = [
            component
            for variable in run.variables
            for component in variables_lib.components(variable)
            if id(component) not in ours
        ]
        return _Trace(specs, run, variables)


class _Tracing:
    """One trace of a forward pass.

    Args:
        forward_pass: The pass to trace.
        inlined: Whether each `tf.function` of the model runs as plain Python.
    """

    def __init__(
        self, forward_pass: ForwardPass, inlined: bool = False
    ) -> None:
        self._pass = forward_pass
        self._strategy = forward_pass._strategy
        self._inlined = inlined
        self._numbers = {
            id(layer): n for n, layer in enumerate(forward_pass.layers)
        }
        self._graph: Any = None
        self._found = threading.local()  # each replica is traced in a thread
        self._functions: dict[Any, Any] = {}
        self.names: set[bytes] = set()
        self.met_functions = False

    def trace(self, specs: Any) -> Any:
        function = tf.function(self._all_replicas, autograph=False)
        return function.get_concrete_function(specs)

    def _all_replicas(self, inputs: Any) -> None:
        self._graph = tf.compat.v1.get_default_graph()
        with interception.intercepted(
            self._pass.layers,
            self._pass._kinds,
            self._is_traced_here,
            self._normalize,
        ):
            if self._strategy is None:
                found = self._forward(inputs)
            else:
                found = replicas.first(
                    self._strategy,
                    self._strategy.run(self._forward, args=(inputs,)),
                )
        self._pass.accumulators.merge(found)

    def _forward(self, inputs: Any) -> dict[int, list[moments.Moments]]:
        self._found.of = collections.defaultdict(list)
        if self._strategy is not None:
            inputs, self._found.empty = replicas.filled(inputs)
        self._pass._model(inputs, training=False)
        return dict(self._found.of)

    def _is_traced_here(self) -> bool:
        graph: Any = tf.compat.v1.get_default_graph()
        if graph is self._graph:
            return True
        while graph is not None and graph is not self._graph:
            graph = getattr(graph, "outer_graph", None)
        if graph is None:
            return False
        # It is inside a `tf.function`, a loop or a condition, which only a
        # trace that inlines functions can tell apart.
        self.met_functions = True
        return self._inlined

    def _normalize(self, layer: Any, inputs: Any, mask: Any) -> Any:
        batch = moments.batch_moments(layer, inputs, mask, self._call)
        number = self._numbers[id(layer)]
        outermost = tf.compat.v1.get_default_graph() is self._graph
        if self._strategy is not None:
            batch = replicas.merged(layer, batch, self._found.empty, outermost)
        if outermost:
            self._found.of[number].append(batch)
        else:  # inside a loop or a condition, out of reach from here
            self._pass.accumulators.merge({number: [batch]})
        return moments.normalize(
            layer, inputs, batch.mean, batch.variance, self._call
        )

    def _call(self, function: Any, *tensors: Any, **settings: Any) -> Any:
        """Calls a function of tensors that all layers share in the graph.

        TensorFlow then optimizes it and prepares it to run once, for all
        shapes, and not once a layer, which took most of a first refit. It is
        never inlined, and no tensor may be a constant: TensorFlow would make a
        copy of the function for each.
        """
        specs = [
            None
            if tensor is None
            else tf.TensorSpec([None] * tensor.shape.rank, tensor.dtype)
            for tensor in tensors
        ]
        key = (function, *specs, *settings.items())
        if key not in self._functions:
            shared = tf.function(
                lambda *tensors: function(*tensors, **settings),
                autograph=False,
                experimental_attributes={"_noinline": True},
            )
            self._functions[key] = shared.get_concrete_function(*specs)
            self.names.add(self._functions[key].name)
        return self._functions[key](*tensors)


def _calls_functions(run: Any, ours: set[bytes]) -> bool:
    """Whether a graph calls a `tf.function` that is not named in `ours`."""
    graph = run.graph.as_graph_def()
    bodies = (function.node_def for function in graph.library.function)
    return any(
        node.op.endswith("PartitionedCall")
        and node.attr["f"].func.name.encode() not in ours
        for node in itertools.chain(graph.node, *bodies)
    )


@contextlib.contextmanager
def _inlined_functions() -> Iterator[None]:
    """Inlines every `tf.function` that a graph calls while it is traced.

    One inside the model may have been traced before, with the layer's own
    `call` in it; and a trace of this pass must not be used after it. TensorFlow
    has no way to do this for one thread: meanwhile functions of others run
    op by op, which is slower and gives the same.
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def _inputs_of(batch: Any) -> Any:
    return tf.keras.utils.unpack_x_y_sample_weight(batch)[0]


def _tensor(value: Any) -> Any:
    if tf.is_tensor(value) or replicas.is_distributed(value):
        return value
    return tf.convert_to_tensor(value)


def _have_ranks(specs: Any) -> bool:
    return all(
        spec.shape.rank is not None
        for spec in tf.nest.flatten(specs, expand_composites=True)
    )


def _alike(a: Any, b: Any) -> bool:
    """Whether two structures are the same."""
    try:
        tf.nest.assert_same_structure(a, b, check_types=False)
    except ValueError:
        return False
    return True


def _fits(specs: Any, traced: Any) -> bool:
    """Whether a trace for the specs `traced` takes inputs of `specs`."""
    return _alike(specs, traced) and all(
        a.is_subtype_of(b)
        for a, b in zip(tf.nest.flatten(specs), tf.nest.flatten(traced))
    )
