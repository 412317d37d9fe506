"""The object graph of a checkpoint, which tells weights from other tensors.

Keys do not: a tensor is stored under the shortest path to it, and in Keras 3 a
model's kernels lie under its optimizer's path.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator
from typing import Any, NamedTuple

from tensorflow.core.protobuf import trackable_object_graph_pb2

KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


class AverageKeys(NamedTuple):
    """The keys of the variables that a `WeightAverage` saved."""

    averages: list[str]  # in their order
    n_models: str
    state: str  # a JSON string


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
            if node.slot_variables or (
                {"iter", "learning_rate"} <= children.keys()
            ):
                state |= own
            for slot in node.slot_variables:
                slots |= set(self._keys(slot.slot_variable_node_id))
            if {"_averages", "_n_models"} <= children.keys():
                averages = list(self._below(children["_averages"]))
                state |= set(averages)
                # Only exponential averages have `_begun`; they do not merge.
                if "_state" in children and "_begun" not in children:
                    for n_models, saved in zip(
                        self._keys(children["_n_models"]),
                        self._keys(children["_state"]),
                    ):
                        found = AverageKeys(averages, n_models, saved)
                        self.averages.append(found)
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
        ids = {child.node_id for node in nodes for child in node.children}
        for node in nodes:
            ids.update(s.slot_variable_node_id for s in node.slot_variables)
        if not ids <= set(range(len(nodes))):
            raise LookupError("it refers to nodes that it does not have")

    def without(self, keys: Container[str]) -> bytes:
        """Returns the graph, serialized, without the values of some keys."""
        graph: Any = trackable_object_graph_pb2.TrackableObjectGraph()
        graph.CopyFrom(self._graph)
        emptied = set()
        for i, node in enumerate(graph.nodes):
            for attribute in list(node.attributes):
                if attribute.checkpoint_key in keys:
                    node.attributes.remove(attribute)
                    emptied.add(i)
        for node in graph.nodes:
            for slot in list(node.slot_variables):
                if slot.slot_variable_node_id in emptied:
                    node.slot_variables.remove(slot)
        return bytes(graph.SerializeToString(deterministic=True))

    def _keys(self, node_id: int) -> Iterator[str]:
        for attribute in self._graph.nodes[node_id].attributes:
            yield attribute.checkpoint_key

    def _below(self, node_id: int) -> Iterator[str]:
        """Yields the keys of a list of variables, or of a dictionary."""
        for child in self._graph.nodes[node_id].children:
            yield from self._keys(child.node_id)
