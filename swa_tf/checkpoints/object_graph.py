"""The object graph of a checkpoint, which tells weights from other tensors.

Keys do not: a tensor is stored under the shortest path to it, and in Keras 3 a
model's kernels lie under its optimizer's path.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Collection, Container, Iterator
from typing import Any, NamedTuple

from tensorflow.core.protobuf import trackable_object_graph_pb2

KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"

# The attributes in which metrics and vocabularies keep their variables.
_NO_WEIGHT = re.compile(
    r"(_?total|_?count|accumulator|(true|false)_(positives|negatives)|total_cm"
    r"|total_confusion_matrix|conf_mtx|intermediate_weights|weights_intermediate"
    r"|idf_weights|num_documents)$"
)
# Attributes of an object whose own variables are no weights.
_OPTIMIZER = {"_variables", "_iterations"}  # Keras since TensorFlow 2.11
_AVERAGE = {"_averages", "_n_models"}
_AVERAGED_MODEL = {"_average", "_variables_beside_average"}
_NO_MODEL = (
    _OPTIMIZER,
    {"iter", "learning_rate"},  # an optimizer of Keras before
    _AVERAGE,
    {"current_loss_scale", "good_steps"},
)
# Lists of variables, in an order that depends on which layers are frozen.
_LIST = re.compile(r"_?(non_)?(trainable_)?variables$")
_IN_ANY_ORDER = "_all_variables"  # Keras 3 exports it in a varying order


class AverageKeys(NamedTuple):
    """The keys of the variables that a `WeightAverage` saved."""

    averages: list[str]  # in their order
    n_models: str
    state: str  # a JSON string


class ObjectGraph:
    """The objects that a `tf.train.Checkpoint` saved, and their variables.

    Attributes:
        slots: The keys of the variables that optimizers keep for weights.
        state: All other keys that are no weights, or no variables at all.
        averages: The keys of each `WeightAverage`.
    """

    def __init__(self, serialized: bytes, keys: Collection[str]) -> None:
        self._graph = trackable_object_graph_pb2.TrackableObjectGraph()
        self._graph.ParseFromString(serialized)
        variables = {key for key in keys if key.endswith(SUFFIX)}
        if not self._graph.nodes:
            raise LookupError("it has no root")
        nodes = range(len(self._graph.nodes))
        named = {v.checkpoint_key for i in nodes for v in self._values(i)}
        if named - variables:
            lost = min(named - variables)
            raise LookupError(f"it names '{lost}', which is not there")
        if variables - named:
            raise LookupError(f"it does not name '{min(variables - named)}'")
        slots: set[str] = set()
        state = set(keys) - variables
        self.averages: list[AverageKeys] = []
        for i, node in enumerate(self._graph.nodes):
            children = self._children(i)
            own = {key for c in children.values() for key in self._keys(c)}
            held = {name for name, c in children.items() if self._values(c)}
            if (
                any(names <= children.keys() for names in _NO_MODEL)
                or node.slot_variables
                or ({"total", "count"} <= held or "squared_sum" in held)
                or all(map(_NO_WEIGHT.match, held))
            ):
                state |= own
            if children.keys() >= _OPTIMIZER:
                slots |= set(self._below(children["_variables"])) - own
            for slot in node.slot_variables:
                slots |= set(self._keys(slot.slot_variable_node_id))
            if children.keys() >= _AVERAGED_MODEL:
                # They belong to the averages, which are the newest's too.
                beside = children["_variables_beside_average"]
                state |= set(self._below(beside))
            if children.keys() >= _AVERAGE:
                averages = list(self._below(children["_averages"]))
                state = state.union(*map(self._below, children.values()))
                # Only exponential averages have `_begun`; they do not merge.
                if "_state" in children and "_begun" not in children:
                    for n_models, saved in zip(
                        self._keys(children["_n_models"]),
                        self._keys(children["_state"]),
                    ):
                        found = AverageKeys(averages, n_models, saved)
                        self.averages.append(found)
        self.slots = slots & set(keys)
        self.state = (state - slots) & set(keys)

    def twins(self, other: ObjectGraph) -> dict[str, str]:
        """Returns the keys of `other` by those of the same variables here.

        Variables are the same if the same names lead to them from the root.
        Where names and a list both do, the names decide: the order in the
        lists of optimizers depends on what was frozen.
        """
        keys: dict[str, str] = {}
        names: dict[str, str] = {}
        seen: set[int] = set()
        taken: set[int] = set()
        by_name = collections.deque([(0, 0)])
        by_list: collections.deque[tuple[int, int]] = collections.deque()
        while queue := by_name or by_list:
            mine, its = queue.popleft()
            if mine in seen or its in taken:
                continue
            seen.add(mine)
            taken.add(its)
            for value, twin in zip(self._values(mine), other._values(its)):
                keys[value.checkpoint_key] = twin.checkpoint_key
                names[value.full_name] = twin.full_name
            children, theirs = self._children(mine), other._children(its)
            for name in children:
                if name in theirs and name != _IN_ANY_ORDER:
                    pair = children[name], theirs[name]
                    (by_list if _LIST.match(name) else queue).append(pair)
        unordered, its_unordered = self._in_any_order(), other._in_any_order()
        for name, key in unordered.items():
            if names.get(name, name) in its_unordered:
                keys.setdefault(key, its_unordered[names.get(name, name)])
        return keys

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

    def _in_any_order(self) -> dict[str, str]:
        """Returns keys by name of the unordered list, if its names differ."""
        unordered = self._children(0).get(_IN_ANY_ORDER)
        nodes = {} if unordered is None else self._children(unordered)
        values = [value for i in nodes.values() for value in self._values(i)]
        found = {value.full_name: value.checkpoint_key for value in values}
        return found if len(found) == len(values) else {}

    def _children(self, node_id: int) -> dict[str, int]:
        children = self._graph.nodes[node_id].children
        return {child.local_name: child.node_id for child in children}

    def _values(self, node_id: int) -> list[Any]:
        """Returns the attribute of a variable; of another object none."""
        attributes = self._graph.nodes[node_id].attributes
        return [a for a in attributes if a.checkpoint_key.endswith(SUFFIX)]

    def _keys(self, node_id: int) -> Iterator[str]:
        for attribute in self._graph.nodes[node_id].attributes:
            yield attribute.checkpoint_key

    def _below(self, node_id: int) -> Iterator[str]:
        """Yields the keys of a list of variables, or of a dictionary."""
        for child in self._graph.nodes[node_id].children:
            yield from self._keys(child.node_id)
