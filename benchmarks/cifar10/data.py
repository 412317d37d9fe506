"""The images of a run: read, split, augmented and batched.

Everything here is a function of the seed: the splits of the seed alone, the
order and the augmentation of (seed, epoch, example). So an epoch can be run
again, or first after a resume, and feeds the same numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from benchmarks.cifar10 import cifar10_files
from benchmarks.cifar10.config import Config
from benchmarks.common.errors import BenchmarkError

CLASSES = 10
VALIDATION_FRACTION = 0.2
_DIGITS_TEST_FRACTION = 0.2
# The test images of CIFAR-10 are the same for everyone. So are those of the
# digits, here: the seed of a run moves the validation images, not the test.
_DIGITS_TEST_SEED = 0


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images, uint8 [n, height, width, channels], and labels, int32 [n]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray | slice) -> Examples:
        """Returns the examples at `indices`."""
        return Examples(self.images[indices], self.labels[indices])


@dataclasses.dataclass(frozen=True)
class Splits:
    """The three sets, and the augmentation that leaves their labels true.

    Attributes:
        train: What the weights learn from.
        validation: A stratified fifth of the training set.
        test: What neither training nor the choice of settings has seen.
        shift: Translation in pixels, at most, in each direction.
        flip: Whether a mirror image keeps its label.
    """

    train: Examples
    validation: Examples
    test: Examples
    shift: int
    flip: bool


def load(config: Config) -> Splits:
    """Reads the dataset of `config` and splits it.

    Raises:
        BenchmarkError: If files are missing or damaged, or if there are
            fewer examples than `config` needs.
    """
    if config.dataset == "digits":
        learning, test = _digits()
    else:
        train, test_pair = cifar10_files.read(config.data_dir)
        learning, test = Examples(*train), Examples(*test_pair)
    if config.max_samples is not None:
        if config.max_samples > len(learning):
            raise BenchmarkError(
                f"`--max_samples` must be <= {len(learning)}, the size of "
                "the training set. "
                f"Received: --max_samples={config.max_samples}"
            )
        if config.max_samples < len(learning):
            learning, _ = split(learning, config.max_samples, config.seed)
    held_out = round(VALIDATION_FRACTION * len(learning))
    train, validation = split(learning, len(learning) - held_out, config.seed)
    for name in ("batch_size", "refit_samples"):
        if getattr(config, name) > len(train):
            raise BenchmarkError(
                f"`--{name}` must be <= {len(train)}, the number of training "
                f"images. Received: --{name}={getattr(config, name)}"
            )
    digits = config.dataset == "digits"
    return Splits(
        train, validation, test, shift=1 if digits else 4, flip=not digits
    )


def split(
    examples: Examples, first: int, seed: int
) -> tuple[Examples, Examples]:
    """Splits at random, with the same share of each class on both sides.

    Args:
        examples: What to split.
        first: The number of examples on the first side.
        seed: Of the choice. The same seed gives the same split.

    Returns:
        Both sides, each in random order.

    Raises:
        BenchmarkError: If a class has too few examples for that.
    """
    try:
        sides = train_test_split(
            np.arange(len(examples)),
            train_size=first,
            stratify=examples.labels,
            random_state=seed,
        )
    except ValueError as error:
        raise BenchmarkError(
            f"{len(examples)} images are too few to be split into {first} and "
            f"{len(examples) - first} with each class on both sides: {error} "
            "Give a larger `--max_samples` or more data."
        ) from error
    return examples.take(sides[0]), examples.take(sides[1])


def training_batches(
    splits: Splits, batch_size: int, seed: int, epochs: Sequence[int]
) -> tf.data.Dataset:
    """Returns the shuffled and augmented training images of some epochs.

    Each image is moved by up to `splits.shift` pixels (over black), mirrored
    or not, and standardized. The examples that do not fill a last batch are
    left out of the epoch; which these are changes from epoch to epoch.

    Args:
        splits: The images.
        batch_size: Images in a batch.
        seed: Of the run.
        epochs: Numbers of the epochs, whose batches follow one another. The
            number and the seed give everything that is drawn in an epoch. One
            dataset of many epochs is made, and traced, only once.

    Returns:
        A dataset of (images, float32 [batch_size, ...]; labels, int32).
    """
    shift = (splits.shift, splits.shift)
    images = tf.pad(splits.train.images, [(0, 0), shift, shift, (0, 0)])
    labels = tf.constant(splits.train.labels)
    shape = splits.train.images.shape[1:]
    n_used = len(splits.train) // batch_size * batch_size
    orders = [
        np.random.default_rng([seed, epoch]).permutation(len(splits.train))
        for epoch in epochs
    ]
    order = np.concatenate([each[:n_used] for each in orders])

    def example(
        epoch: tf.Tensor, index: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        key = tf.random.experimental.stateless_fold_in([seed, epoch], index)
        image = tf.image.stateless_random_crop(images[index], shape, key)
        if splits.flip:
            flip_key = tf.random.experimental.stateless_fold_in(key, 1)
            image = tf.image.stateless_random_flip_left_right(image, flip_key)
        return image, labels[index]

    return (
        tf.data.Dataset.from_tensor_slices(
            (np.repeat(np.int32(epochs), n_used), order.astype(np.int32))
        )
        .map(example, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(batch_size, drop_remainder=True)
        .map(_standardized)
        .prefetch(tf.data.AUTOTUNE)
    )


def plain_batches(examples: Examples, batch_size: int) -> tf.data.Dataset:
    """Returns the images unaugmented, standardized, in their own order.

    For evaluation and for the refit of batch-norm statistics: the network is
    used on images that are not augmented.
    """
    return (
        tf.data.Dataset.from_tensor_slices((examples.images, examples.labels))
        .batch(batch_size)
        .map(_standardized)
        .prefetch(tf.data.AUTOTUNE)
    )


def _standardized(
    images: tf.Tensor, labels: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Gives each image mean 0 and deviation 1 over its pixels."""
    return tf.image.per_image_standardization(images), labels


def _digits() -> tuple[Examples, Examples]:
    """Reads the 1,797 handwritten digits of 8 x 8 pixels, and splits them."""
    bunch = load_digits()
    examples = Examples(
        bunch.images.astype(np.uint8)[..., np.newaxis],
        bunch.target.astype(np.int32),
    )
    test = round(_DIGITS_TEST_FRACTION * len(examples))
    return split(examples, len(examples) - test, _DIGITS_TEST_SEED)
