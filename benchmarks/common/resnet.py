"""Pre-activation residual networks (ResNet v2) for small images."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

import swa_tf

BLOCKS: dict[int, tuple[int, ...]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Basic blocks in each of the four stages, by the size of the network."""


class ResNet(tf.keras.Model):
    """A ResNet v2 of basic blocks for images of 8 x 8 to 64 x 64 pixels.

        stem 3x3 -> 4 stages of blocks -> BN -> ReLU -> mean -> dense

    The stem has stride 1 and no pooling, as is usual for 32 x 32 pixels. The
    stages have `width` times 1, 2, 4 and 8 channels, and halve the image from
    one to the next. Kernels start as He et al. 2015 have it.

    >>> model = ResNet(18, width=4, classes=10)
    >>> model(tf.zeros([2, 8, 8, 1])).shape
    TensorShape([2, 10])

    Args:
        size: 18 or 34.
        width: Channels of the first stage; 64 is the real network.
        classes: Outputs, as logits.
        batch_norm: `stock` for the layer of Keras, `moving_free` for
            `swa_tf.MovingFreeBatchNormalization`.
        batch_norm_momentum: Momentum of the moving statistics, in both.

    References:
        He et al. 2016, Identity Mappings in Deep Residual Networks,
        https://arxiv.org/abs/1603.05027.
    """

    def __init__(
        self,
        size: int = 34,
        width: int = 64,
        classes: int = 10,
        batch_norm: str = "stock",
        batch_norm_momentum: float = 0.99,
    ) -> None:
        super().__init__(name=f"resnet{size}v2")
        self.stem = _conv(width, 3, 1)
        self._block_names: list[str] = []
        for stage, blocks in enumerate(BLOCKS[size]):
            for index in range(blocks):
                self._add_block(
                    channels=width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    batch_norm=batch_norm,
                    batch_norm_momentum=batch_norm_momentum,
                    name=f"stage{stage + 1}_block{index + 1}",
                )
        self.norm = Norm(batch_norm, batch_norm_momentum)
        self.pool = tf.keras.layers.GlobalAveragePooling2D()
        # Logits in float32, whatever the layers before compute in.
        self.dense = tf.keras.layers.Dense(
            classes, kernel_initializer="he_normal", dtype="float32"
        )

    def _add_block(self, name: str, **kwargs: Any) -> None:
        # An attribute each, and not a list: what Keras 3 holds in a list is
        # missing from the checkpoints of TensorFlow.
        setattr(self, name, BasicBlock(name=name, **kwargs))
        self._block_names.append(name)

    @property
    def blocks(self) -> list[BasicBlock]:
        """Returns the residual blocks, from the input to the output."""
        return [getattr(self, name) for name in self._block_names]

    def call(
        self,
        inputs: tf.Tensor,
        training: bool | None = None,
        use_moving_statistics: bool = True,
    ) -> tf.Tensor:
        """Returns logits [n, classes] of images [n, height, width, channels].

        `use_moving_statistics=False` takes the statistics of the last refit
        outside training; only `moving_free` layers keep these apart.
        """
        x = self.stem(inputs)
        for block in self.blocks:
            x = block(
                x,
                training=training,
                use_moving_statistics=use_moving_statistics,
            )
        x = self.norm(
            x, training=training, use_moving_statistics=use_moving_statistics
        )
        return self.dense(self.pool(x))


class BasicBlock(tf.keras.layers.Layer):
    """A residual block: x + conv(norm(conv(norm(x)))).

    Where the channels or the size of the image change, the identity is a
    1 x 1 convolution of the normalized input.
    """

    def __init__(
        self,
        channels: int,
        stride: int,
        batch_norm: str,
        batch_norm_momentum: float,
        name: str,
    ) -> None:
        super().__init__(name=name)
        self.norm_1 = Norm(batch_norm, batch_norm_momentum)
        self.conv_1 = _conv(channels, 3, stride)
        self.norm_2 = Norm(batch_norm, batch_norm_momentum)
        self.conv_2 = _conv(channels, 3, 1)
        self.project = _conv(channels, 1, stride) if stride > 1 else None

    def call(
        self,
        inputs: tf.Tensor,
        training: bool | None = None,
        use_moving_statistics: bool = True,
    ) -> tf.Tensor:
        """Returns [n, height / stride, width / stride, channels]."""
        statistics = {
            "training": training,
            "use_moving_statistics": use_moving_statistics,
        }
        normalized = self.norm_1(inputs, **statistics)
        identity = self.project(normalized) if self.project else inputs
        x = self.conv_1(normalized)
        x = self.norm_2(x, **statistics)
        return identity + self.conv_2(x)


class Norm(tf.keras.layers.Layer):
    """Batch norm of either kind, then ReLU."""

    def __init__(self, batch_norm: str, momentum: float) -> None:
        super().__init__()
        self.moving_free = batch_norm == "moving_free"
        make = (
            swa_tf.MovingFreeBatchNormalization
            if self.moving_free
            else tf.keras.layers.BatchNormalization
        )
        self.batch_norm = make(momentum=momentum, epsilon=1e-5)

    def call(
        self,
        inputs: tf.Tensor,
        training: bool | None = None,
        use_moving_statistics: bool = True,
    ) -> tf.Tensor:
        """Returns the normalized and rectified input, in the same shape."""
        chosen: dict[str, Any] = {}
        if self.moving_free:
            chosen["use_moving_statistics"] = use_moving_statistics
        return tf.nn.relu(self.batch_norm(inputs, training=training, **chosen))


def _conv(channels: int, kernel_size: int, stride: int) -> Any:
    return tf.keras.layers.Conv2D(
        channels,
        kernel_size,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
    )
