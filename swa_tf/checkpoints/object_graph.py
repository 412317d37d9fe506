"""The object graph of a checkpoint: which tensors are whose.

Keys alone do not say: a tensor is stored under the shortest path to it, and in
Keras 3 a model's kernels lie under its optimizer's path.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator
from typing import Any, NamedTuple

from tensorflow.core.protobuf import trackable_object_graph_pb2

KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


class AverageKeys(NamedTuple):
    """The keys under which a `WeightAverage` was saved.

    Attributes:
        averages: Of its averages, in their order.
        n_models: Of the number of models averaged.
        state: Of whether it is swapped in, and of which variables it is.
    """

    averages: list[str]
    n_models: str
    state: str


class ObjectGraph:
    """The objects that a `tf.train.Checkpoint` saved, and their variables.

    Attributes:
        slots: The keys of the variables that optimizers keep for weights.
        state: The keys of other variables that are no weights: those of
            optimizers, of metrics, and the averages of a `WeightAverage`.
        averages: The keys of each `WeightAverage`.
    """

    def __init__(self, serialized: bytes, keys: Collection[str]) -> None:
        self._graph = trackable_object_graph_pb2.TrackableObjectGraph()
        self._graph.ParseFromString(serialized)
        self._check(keys)
        slots: set[str] = set()
        state: set[str] = set()
        self.averages: list[AverageKeys] = []
        for node in self._graph.nodes:
            children = {c.local_name: c.node_id for c in node.children}
            own = {key for c in children.values() for key in self._keys(c)}
            # Keras since TensorFlow 2.11, and Keras 3.
            if {"_variables", "_iterations"} <= children.keys():
                state |= own
                slots |= set(self._below(children["_variables"])) - own
            # Before, and `tf.compat.v1.train`.
            if node.slot_variables or {"iter", "learning_rate"} <= set(
                children
            ):
                state |= own
            for slot in node.slot_variables:
                slots |= set(self._keys(slot.slot_variable_node_id))
            if {"_averages", "_n_models"} <= children.keys():
                averages = list(self._below(children["_averages"]))
                state |= set(averages)
                # An exponential average, which has begun, does not merge.
                if "_state" in children and "_begun" not in children:
                    self.averages += [
                        AverageKeys(averages, *n_models_and_state)
                        for n_models_and_state in zip(
                            self._keys(children["_n_models"]),
                            self._keys(children["_state"]),
                        )
                    ]
            if {"total", "count"} <= children.keys() or (  # a metric
                {"current_loss_scale", "good_steps"} <= children.keys()
            ):
                state |= own
        self.slots = slots & set(keys)
        self.state = (state - slots) & set(keys)

    def _check(self, keys: Collection[str]) -> None:
        """Raises LookupError unless this is the graph of these tensors."""
        nodes = self._graph.nodes
        named = {a.checkpoint_key for node in nodes for a in node.attributes}
        for key in keys:
            if key.endswith(SUFFIX) and key not in named:
                raise LookupError(f"it does not name '{key}'")
        for node in nodes:
            ids = [child.node_id for child in node.children]
            ids += [slot.slot_variable_node_id for slot in node.slot_variables]
            for node_id in ids:
                if not 0 <= node_id < len(nodes):
                    raise LookupError(f"it has no node {node_id}")

    def without(self, keys: Container[str]) -> bytes:
        """Returns the graph, serialized, without the values of these keys."""
        graph: Any = trackable_object_graph_pb2.TrackableObjectGraph()
        graph.CopyFrom(self._graph)
        emptied = set()
        for i, node in enumerate(graph.nodes):
            kept = [a for a in node.attributes if a.checkpoint_key not in keys]
            if len(kept) < len(node.attributes):
                emptied.add(i)
                del node.attributes[:]
                node.attributes.extend(kept)
        for node in graph.nodes:
            slots = [
                s
                for s in node.slot_variables
                if s.slot_variable_node_id not in emptied
            ]
            del node.slot_variables[:]
            node.slot_variables.extend(slots)
        return bytes(graph.SerializeToString(deterministic=True))

    def _keys(self, node_id: int) -> Iterator[str]:
        for attribute in self._graph.nodes[node_id].attributes:
            yield attribute.checkpoint_key

    def _below(self, node_id: int) -> Iterator[str]:
        """Yields the keys of a list or dictionary of variables."""
        for child in self._graph.nodes[node_id].children:
            yield from self._keys(child.node_id)
