"""A batch-norm layer that holds moving and refit statistics side by side."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from swa_tf.batch_norm import moments
from swa_tf.support import compat


@compat.register
class MovingFreeBatchNormalization(tf.keras.layers.BatchNormalization):
    """Batch normalization with moving and with freshly computed statistics.

    Beside `moving_mean` and `moving_variance`, which training updates as in
    any batch-norm layer, it has `mean` and `variance`, the pooled moments of
    the samples that a pre-inference pass has shown it, and `n_updates`, the
    number of batches in them. So one model can be evaluated with both:

        y = gamma * (x - m) / sqrt(v + epsilon) + beta

    | `training` | `use_moving_statistics` | m, v | updates |
    | --- | --- | --- | --- |
    | True | True | of the batch | moving_mean, moving_variance |
    | True | False | of the batch | mean, variance, n_updates |
    | False | True | moving | nothing |
    | False | False | mean, variance | nothing |

    `swa_tf.refit_batch_norm` makes the pre-inference pass for a whole model,
    with dropout off.

    >>> layer = swa_tf.MovingFreeBatchNormalization(epsilon=0.0)
    >>> x = tf.constant([[1.0], [3.0]])
    >>> _ = layer(x, training=True, use_moving_statistics=False)
    >>> layer.mean.numpy().tolist(), layer.variance.numpy().tolist()
    ([2.0], [1.0])
    >>> layer(x, use_moving_statistics=False).numpy().tolist()
    [[-1.0], [1.0]]

    Args:
        **kwargs: The arguments of `tf.keras.layers.BatchNormalization`:
            axis=-1, momentum=0.99, epsilon=1e-3, center=True, scale=True, ...

    References:
        Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167, algorithm 2,
        for statistics of the population; Chan et al. 1979, Updating Formulae
        and a Pairwise Algorithm for Computing Sample Variances.
    """

    def build(self, input_shape: Any) -> None:
        """Makes the weights, for inputs of `input_shape`."""
        super().build(input_shape)
        add = functools.partial(compat.add_statistic, self)
        shape = self.moving_mean.shape
        self.mean = add("mean", shape=shape, initializer="zeros")
        self.variance = add("variance", shape=shape, initializer="ones")
        count = {"shape": (), "dtype": "int64", "initializer": "zeros"}
        self.n_updates = add("n_updates", **count)
        self.n_samples = add("n_samples", **count)

    def reset_statistics(self) -> Any:
        """Forgets `mean` and `variance`; in a v1 graph, returns the op for it.

        >>> layer = swa_tf.MovingFreeBatchNormalization()
        >>> x = tf.ones([2, 1])
        >>> _ = layer(x, training=True, use_moving_statistics=False)
        >>> layer.reset_statistics()
        >>> int(layer.n_updates)
        0
        """
        if not self.built:
            return None
        zeros = [self.mean, self.n_updates, self.n_samples]
        return tf.group(
            self.variance.assign(tf.ones_like(self.variance)),
            *(each.assign(tf.zeros_like(each)) for each in zeros),
        )

    def call(
        self,
        inputs: Any,
        training: bool | None = None,
        use_moving_statistics: Any = True,
        mask: Any = None,
    ) -> Any:
        """Normalizes `inputs`, as the table of the class says.

        Args:
            inputs: Tensor of any floating dtype and rank.
            training: Whether to use the moments of this batch.
            use_moving_statistics: Which statistics to use and to update: a
                Python bool or a scalar boolean tensor.
            mask: The samples that count, as in Keras's layer.

        Returns:
            A tensor of the shape of `inputs`. In a v1 graph it runs the update
            of `mean` and `variance`, which is in `UPDATE_OPS`.

        Raises:
            tf.errors.InvalidArgumentError: If `mean` and `variance` are to be
                used before a pre-inference pass has filled them.
        """
        # Not `functools.partial`: the process crashed when Keras 2 saved it.
        given = inputs, training, mask
        if tf.is_tensor(use_moving_statistics):
            outputs = tf.cond(
                use_moving_statistics,
                lambda: self._outputs(*given, True),
                lambda: self._outputs(*given, False),
            )
        else:
            outputs = self._outputs(*given, bool(use_moving_statistics))
        in_v1_graph = not tf.compat.v1.executing_eagerly_outside_functions()
        if in_v1_graph and use_moving_statistics is not True and training:
            name = tf.compat.v1.GraphKeys.UPDATE_OPS
            tf.compat.v1.add_to_collection(name, outputs.op)
        return outputs

    def _outputs(
        self, inputs: Any, training: Any, mask: Any, use_moving_statistics: bool
    ) -> Any:
        if use_moving_statistics:
            return super().call(inputs, training=training, mask=mask)
        if training and self.trainable:
            rank = inputs.shape.rank
            last = moments.channel_axes(self, rank) == [rank - 1]
            if mask is not None and not last:
                raise ValueError(
                    "`mask` needs a batch-norm layer whose `axis` is the last. "
                    f"Received: axis={self.axis} in layer {self.name}"
                )
            batch = moments.batch_moments(self, inputs, mask)
            with tf.control_dependencies([self._merged(batch)]):
                return moments.normalize(self, inputs, *batch[1:])
        filled = tf.debugging.assert_positive(
            tf.convert_to_tensor(self.n_updates),
            message=f"Layer {self.name} has no refit statistics yet: call "
            "`swa_tf.refit_batch_norm`, or the layer with `training=True`",
        )
        with tf.control_dependencies([filled]):
            mean = tf.identity(self.mean)
        return moments.normalize(self, inputs, mean, self.variance)

    def _merged(self, batch: moments.Moments) -> Any:
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            raise RuntimeError(
                "`use_moving_statistics=False` in training mode merges the "
                "moments of one replica only. Call "
                "`swa_tf.refit_batch_norm` outside `strategy.run`."
            )
        statistics = (self.n_samples, self.mean, self.variance)
        known = (tf.cast(each, tf.float64) for each in statistics)
        merged = moments.Moments(*known).merge(batch)
        return tf.group(
            self.mean.assign(tf.cast(merged.mean, self.mean.dtype)),
            self.variance.assign(tf.cast(merged.variance, self.variance.dtype)),
            self.n_samples.assign(tf.cast(merged.count[0], tf.int64)),
            self.n_updates.assign_add(1),
        )
