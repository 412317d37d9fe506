"""Batches that are split among replicas, and the moments of the whole."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from swa_tf.batch_norm.moments import Moments
from swa_tf.support import compat
from swa_tf.support import variables as variables_lib

DISTRIBUTED = (
    tf.distribute.DistributedDataset,
    tf.distribute.DistributedIterator,
    tf.distribute.DistributedValues,
)
"""The classes of data sets and batches that a strategy has distributed."""


def strategy_of(variable: Any) -> tf.distribute.Strategy | None:
    """Returns the strategy of a variable, or None if one replica computes."""
    strategy = variables_lib.strategy_of(compat.tf_variable(variable))
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return None
    # With parameter servers the coordinator alone computes.
    is_server = isinstance(strategy, tf.distribute.ParameterServerStrategy)
    return None if is_server else strategy


def distributed(
    strategy: tf.distribute.Strategy | None,
    dataset: Any,
    wanted: Callable[[Any], Any],
    argument: str,
) -> Iterable[Any]:
    """Returns the batches of `dataset`, split into the parts of replicas.

    Of a batch of a plain iterable only `(wanted(batch),)` is kept: labels need
    not be tensors that can be split. `argument` names `dataset` in an error.
    """
    if isinstance(dataset, DISTRIBUTED):
        specs = tf.nest.flatten(dataset.element_spec)
        are_of_one = all(isinstance(spec, tf.TensorSpec) for spec in specs)
        if strategy is None and not are_of_one:
            raise ValueError(
                f"`{argument}` must be distributed by the strategy of the "
                "model. Received: a distributed one, and a model of one replica"
            )
        return dataset
    if strategy is None:
        return dataset
    if isinstance(dataset, tf.data.Dataset):
        return strategy.experimental_distribute_dataset(dataset)
    return (_split(strategy, (wanted(batch),)) for batch in dataset)


def filled(inputs: Any) -> tuple[Any, tf.Tensor]:
    """Returns inputs with at least one sample, and whether they had none.

    A replica without samples gets one of zeros: it must take part in every
    exchange, and some kernels take no empty batch.
    """
    sizes = [tf.shape(x)[0] for x in tf.nest.flatten(inputs) if _has(x)]
    empty = tf.equal(sizes[0], 0) if sizes else tf.constant(False)

    def fill(value: Any) -> Any:
        if not _has(value):
            return value
        shape = tf.concat([[tf.cast(empty, tf.int32)], tf.shape(value)[1:]], 0)
        filled = tf.concat([value, tf.zeros(shape, value.dtype)], axis=0)
        filled.set_shape([None, *value.shape[1:]])
        return filled

    return tf.nest.map_structure(fill, inputs), empty


def _has(value: Any) -> bool:
    """Whether a value is a tensor with an axis of samples."""
    return isinstance(value, tf.Tensor) and value.shape.rank != 0


def merged(
    layer: Any, batch: Moments, empty: tf.Tensor, outermost: bool
) -> Moments:
    """Returns the moments of a batch, merged from those of its parts.

    Every replica merges all that are not `empty`, in the same order.
    """
    if not outermost:
        raise RuntimeError(
            "`refit_batch_norm` on several replicas needs batch-norm layers "
            "outside of loops and conditions of TensorFlow. "
            f"Received: layer {layer.name} inside one"
        )
    count = tf.where(empty, tf.zeros_like(batch.count), batch.count)
    own = tf.stack([count, batch.mean, batch.variance])
    replica = tf.distribute.get_replica_context()
    replicas = replica.num_replicas_in_sync
    if isinstance(replica.strategy, tf.distribute.MirroredStrategy):
        # One process need not send anything, and TensorFlow confuses the
        # collective exchanges of two such strategies.
        local = replica.strategy.experimental_local_results
        table = replica.merge_call(lambda _, x: tf.stack(local(x)), (own,))
    else:
        # Each replica fills its own row of a table of zeros, to be summed.
        row = tf.one_hot(
            replica.replica_id_in_sync_group, replicas, dtype=tf.float64
        )
        table = replica.all_reduce(
            tf.distribute.ReduceOp.SUM, row[:, tf.newaxis, tf.newaxis] * own
        )
    parts = [Moments(*tf.unstack(x, 3)) for x in tf.unstack(table, replicas)]
    return functools.reduce(Moments.merge, parts)


def _split(strategy: tf.distribute.Strategy, batch: Any) -> Any:
    n_replicas = strategy.num_replicas_in_sync

    def part(value: Any, replica: int) -> tf.Tensor:
        value = value if tf.is_tensor(value) else tf.convert_to_tensor(value)
        if value.shape.rank == 0:
            return value
        start, end = ((replica + i) * len(value) // n_replicas for i in (0, 1))
        return value[start:end]

    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.nest.map_structure(
            lambda value: part(value, context.replica_id_in_sync_group), batch
        )
    )
