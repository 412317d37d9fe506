"""Forward passes that collect batch-norm moments, traced once and kept."""

from __future__ import annotations

import collections
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import tensorflow as tf

from swa_tf import _collecting, _quick_moments, _replicas, _variables
from swa_tf._accumulators import Accumulators
from swa_tf._fingerprints import Fingerprint
from swa_tf._moments import Moments

_MOST_TRACES = 8
"""More shapes of inputs than that, and those used least lately are dropped."""

_kept: dict[int, CollectingPass] = {}


def kept(model: Any) -> CollectingPass | None:
    """The pass of the last time, unless the model has changed since."""
    known = _kept.get(id(model))
    return known if known is not None and known.fits(model) else None


def keep(model: Any, made: CollectingPass) -> None:
    """Keeps a pass while its model lives."""
    if id(model) not in _kept:
        ended = weakref.finalize(model, _kept.pop, id(model), None)
        ended.atexit = False
    _kept[id(model)] = made


class _Trace(NamedTuple):
    specs: Any
    run: Callable[[Any], Any]
    written: list[Callable[[], tf.Variable | None]]


class CollectingPass:
    """The model in inference mode, but for layers that normalize by batch.

    It is traced for specs that grow as they must: a `tf.function` would do
    the same, but warn of each new one, and trace twice where the last batch
    is short. Neither it nor its traces keep the model alive.

    On several replicas, of one process or of many, each takes a part of every
    batch, and normalizes by the moments of the whole of it: so they count and
    compute what one replica would on whole batches.

    Args:
        model: What is called, as `model(inputs, training=False)`.
        layers: The layers of it that collect.
        kinds: Their classes that are no user's.
    """

    def __init__(
        self, model: Any, layers: list[Any], kinds: tuple[type, ...]
    ) -> None:
        self._model: Callable[[], Any] = weakref.ref(model)
        self._layers = [weakref.ref(layer) for layer in layers]
        self._kinds = kinds
        self._strategy = _replicas.strategy_of(layers[0].moving_mean)
        self._fingerprint = Fingerprint(model)
        self._traces: collections.deque[_Trace]
        self._traces = collections.deque(maxlen=_MOST_TRACES)
        self._trace: Any = None
        self._saved: dict[int, Callable[[], None]] = {}
        self.accumulators = Accumulators(
            [layer.moving_mean.shape.num_elements() for layer in layers]
        )

    @property
    def layers(self) -> list[Any]:
        """The layers that collect."""
        return [layer() for layer in self._layers]

    def fits(self, model: Any) -> bool:
        """Whether the model is still what was traced."""
        return self._fingerprint.fits(model)

    def run(
        self, dataset: Iterable[Any], steps: int | None, argument: str
    ) -> int:
        """Forgets all samples, and takes the batches of `dataset`.

        `argument` is what the caller calls it, for the errors.

        Returns:
            How many there were, or `steps` if there were as many.
        """
        self.accumulators.reset()
        self._saved = {}
        self._trace = None
        if self._strategy is not None:
            dataset = _replicas.distributed(
                self._strategy, dataset, lambda batch: (_inputs_of(batch),)
            )
        elif _replicas.is_distributed(dataset):
            _replicas.check_one_replica(dataset, argument)
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
            if self._trace is None or not _fits(inputs, self._trace.specs):
                self._use_for(inputs)
            self._trace.run(inputs)
            taken += 1
        return taken

    def put_back(self) -> None:
        """Undoes what else the passes since the start have written."""
        for restore in self._saved.values():
            restore()
        self._saved = {}  # what is saved keeps its variable alive

    def _use_for(self, inputs: Any) -> None:
        """Takes a trace that fits, or makes a wider one."""
        fitting = [each for each in self._traces if _fits(inputs, each.specs)]
        if fitting:
            self._use(fitting[-1].specs)
            return
        specs = tf.nest.map_structure(tf.type_spec_from_value, inputs)
        if self._trace is not None and _alike(specs, self._trace.specs):
            specs = tf.nest.map_structure(
                lambda a, b: a.most_specific_common_supertype([b]) or b,
                self._trace.specs,
                specs,
                check_types=False,
            )
        self._use(specs)

    def _use(self, specs: Any) -> None:
        """Takes or makes the trace for `specs`; saves what it may change."""
        same = [
            each
            for each in self._traces
            if _alike(each.specs, specs)
            and tf.nest.flatten(each.specs) == tf.nest.flatten(specs)
        ]
        if same:
            self._traces.remove(same[0])
            self._trace = same[0]
        else:
            self._trace = self._traced(specs)
            self._fingerprint.settle(self._model())
        self._traces.append(self._trace)
        for ref in self._trace.written:
            variable = ref()
            if variable is not None and id(variable) not in self._saved:
                self._saved[id(variable)] = _variables.snapshot([variable])

    def _forward(self, inputs: Any) -> None:
        graph = tf.compat.v1.get_default_graph()
        batches = threading.local()  # each replica is traced in a thread

        def normalize(number: int, layer: Any, inputs: Any, mask: Any) -> Any:
            batch = _quick_moments.batch_moments(layer, inputs, mask)
            outermost = tf.compat.v1.get_default_graph() is graph
            if self._strategy is not None:
                batch = _replicas.merged(layer, batch, batches.empty, outermost)
            if outermost:
                batches.of[number].append(batch)
            else:  # inside a loop or a condition, out of reach from here
                self.accumulators.merge({number: [batch]})
            return _quick_moments.normalize(
                layer, inputs, batch.mean, batch.variance
            )

        def collected(inputs: Any) -> dict[int, list[Moments]]:
            batches.of = collections.defaultdict(list)
            if self._strategy is not None:
                inputs, batches.empty = _replicas.filled(inputs)
            self._model()(inputs, training=False)
            return dict(batches.of)

        with _collecting.collecting(self.layers, self._kinds, normalize):
            if self._strategy is None:
                found = collected(inputs)
            else:
                found = _replicas.first(
                    self._strategy,
                    self._strategy.run(collected, args=(inputs,)),
                )
        self.accumulators.merge(found)

    def _traced(self, specs: Any) -> _Trace:
        run = tf.function(self._forward).get_concrete_function(specs)
        ours = {id(each) for each in self.accumulators.variables}
        return _Trace(
            specs,
            run,
            [weakref.ref(v) for v in _written(run) if id(v) not in ours],
        )


# Ops that read a variable and no more.
_READS = frozenset(
    {"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape"}
)


def _written(run: Any) -> list[tf.Variable]:
    """The variables that a traced function may write."""
    captured = run.captured_inputs
    written = {
        id(outer)
        for outer, inner in zip(captured, run.inputs[-len(captured) :])
        if any(op.type not in _READS for op in inner.consumers())
    }
    return [
        component
        for variable in run.variables
        for component in _variables.components(variable)
        if id(component.handle) in written
    ]


def _inputs_of(batch: Any) -> Any:
    return tf.keras.utils.unpack_x_y_sample_weight(batch)[0]


def _tensor(value: Any) -> Any:
    if tf.is_tensor(value) or _replicas.is_distributed(value):
        return value
    return tf.convert_to_tensor(value)


def _have_ranks(specs: Any) -> bool:
    return all(
        spec.shape.rank is not None
        for spec in tf.nest.flatten(specs, expand_composites=True)
    )


def _alike(a: Any, b: Any) -> bool:
    """Whether two structures are one."""
    try:
        tf.nest.assert_same_structure(a, b, check_types=False)
    except ValueError:
        return False
    return True


def _fits(inputs: Any, specs: Any) -> bool:
    return _alike(inputs, specs) and all(
        spec.is_compatible_with(value)
        for value, spec in zip(tf.nest.flatten(inputs), tf.nest.flatten(specs))
    )
