"""Tests of `benchmarks.data` and `benchmarks.cifar10_files`."""

import io
import os
import pickle

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from benchmarks.cifar10 import cifar10_files, config, data
from benchmarks.common.errors import BenchmarkError


@pytest.fixture(name="images")
def fixture_images():
    """Twelve images, each pixel another number, and labels 0 to 9, 0, 1."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, [12, 32, 32, 3]).astype(np.uint8)
    return images, np.arange(12) % 10


def planes(images):
    """Red, then green, then blue, row by row: as CIFAR-10's files have it."""
    return np.stack(
        [
            np.concatenate([image[..., c].ravel() for c in range(3)])
            for image in images
        ]
    )


def batch_slices():
    """Two images for each of the six files."""
    names = cifar10_files.TRAIN_BATCHES + cifar10_files.TEST_BATCHES
    return [(name, slice(2 * i, 2 * i + 2)) for i, name in enumerate(names)]


def write_binary(directory, images, labels):
    directory.mkdir(exist_ok=True)
    for name, part in batch_slices():
        content = b"".join(
            bytes([label]) + row.tobytes()
            for label, row in zip(labels[part], planes(images[part]))
        )
        (directory / f"{name}.bin").write_bytes(content)


def write_python(directory, images, labels):
    directory.mkdir(exist_ok=True)
    for name, part in batch_slices():
        batch = {
            b"batch_label": b"a batch",
            b"labels": [int(label) for label in labels[part]],
            b"data": planes(images[part]),
            b"filenames": [b"a.png", b"b.png"],
        }
        (directory / name).write_bytes(pickle.dumps(batch, protocol=2))


def jpeg_arrays(images, labels):
    arrays = {}
    for split, part in (("train", slice(0, 10)), ("test", slice(10, 12))):
        files = [
            tf.io.encode_jpeg(image, quality=100).numpy()
            for image in images[part]
        ]
        sizes = [len(file) for file in files]
        arrays[f"{split}_bytes"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"{split}_offsets"] = np.cumsum([0, *sizes], dtype=np.int64)
        arrays[f"{split}_labels"] = labels[part].astype(np.uint8)
    return arrays


class TestReaders:
    @pytest.mark.parametrize("write", [write_binary, write_python])
    @pytest.mark.parametrize("unpacked", [False, True])
    def test_batches(self, tmp_path, images, write, unpacked):
        pixels, labels = images
        suffix = "bin" if write is write_binary else "py"
        name = f"cifar-10-batches-{suffix}" if unpacked else "."
        write(tmp_path / name, pixels, labels)
        train, test = cifar10_files.read(str(tmp_path))
        np.testing.assert_array_equal(train[0], pixels[:10])
        np.testing.assert_array_equal(train[1], labels[:10])
        np.testing.assert_array_equal(test[0], pixels[10:])
        np.testing.assert_array_equal(test[1], labels[10:])
        assert train[0].dtype == np.uint8
        assert train[1].dtype == np.int32

    def test_pickle_of_python_2(self, tmp_path):
        # By hand, the opcodes that Python 2 wrote: GLOBALs of numpy.core,
        # and strings where Python 3 has bytes.
        pixels = bytes(range(256)) * 12
        state = (
            b"(I1\n(I1\nI3072\ntcnumpy\ndtype\n(U\x02u1I0\nI1\ntR"
            b"(I3\nU\x01|NNNI-1\nI-1\nI0\ntbI00\n"
            b"T" + (3072).to_bytes(4, "little") + pixels + b"t"
        )
        content = (
            b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n"
            b"(cnumpy\nndarray\n(I0\ntU\x01btR" + state + b"b"
            b"U\x06labels](I7\neu."
        )
        path = tmp_path / "data_batch_1"
        path.write_bytes(content)
        read, labels = cifar10_files.read_python_batch(str(path))
        assert read.shape == (1, 32, 32, 3)
        assert read[0, 0, 5, 0] == 5  # row 0, column 5, red
        assert labels.tolist() == [7]

    def test_jpeg_archive(self, tmp_path, images):
        arrays = jpeg_arrays(*images)
        np.savez(tmp_path / cifar10_files.JPEG_FILE, **arrays)
        train, test = cifar10_files.read(str(tmp_path))
        assert train[0].shape == (10, 32, 32, 3)
        assert test[1].tolist() == [0, 1]
        start, end = arrays["train_offsets"][3:5]
        from_pillow = pytest.importorskip("PIL.Image").open(
            io.BytesIO(arrays["train_bytes"][start:end].tobytes())
        )
        # Two decoders of the same file: rounding, and no more.
        difference = np.asarray(from_pillow, int) - train[0][3]
        assert np.mean(np.abs(difference)) < 3.0

    def test_real_archive(self, shared_data):
        path = shared_data / cifar10_files.JPEG_FILE
        arrays = np.load(path, allow_pickle=False)
        assert arrays["train_labels"].shape == (50000,)
        few = {}
        for split in ("train", "test"):
            offsets = arrays[f"{split}_offsets"][:21]
            few[f"{split}_offsets"] = offsets
            few[f"{split}_bytes"] = arrays[f"{split}_bytes"][: offsets[-1]]
            few[f"{split}_labels"] = arrays[f"{split}_labels"][:20]
        pixels, labels = cifar10_files._decoded("", few, "train")
        assert pixels.shape == (20, 32, 32, 3)
        assert labels.tolist() == [0] * 20  # grouped by class
        assert pixels.std() > 20.0

    @pytest.mark.parametrize("protocol", [0, 2, 4])
    def test_malicious_pickle_is_refused(self, tmp_path, images, protocol):
        write_python(tmp_path, *images)
        victim = tmp_path / "victim"

        class Malicious:
            def __reduce__(self):
                return os.mkdir, (str(victim),)

        content = pickle.dumps({b"data": Malicious()}, protocol=protocol)
        pickle.loads(content)
        assert victim.exists(), "the pickle does run code"
        victim.rmdir()
        (tmp_path / "data_batch_3").write_bytes(content)
        with pytest.raises(BenchmarkError, match=r"data_batch_3.*mkdir"):
            cifar10_files.read(str(tmp_path))
        assert not victim.exists()

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\x80\x02}",
            b"not a pickle",
            pickle.dumps([1, 2], protocol=2),
            pickle.dumps({b"labels": [1]}, protocol=2),
            pickle.dumps({b"data": [1], b"labels": [1]}, protocol=2),
            pickle.dumps(
                {b"data": np.zeros([1, 3072], "u1"), b"labels": [10]}, 2
            ),
            pickle.dumps(
                {b"data": np.zeros([2, 3072], "u1"), b"labels": [1]}, 2
            ),
        ],
    )
    def test_damaged_python_batch(self, tmp_path, content):
        path = tmp_path / "data_batch_1"
        path.write_bytes(content)
        with pytest.raises(BenchmarkError, match="data_batch_1 cannot be read"):
            cifar10_files.read_python_batch(str(path))

    @pytest.mark.parametrize("content", [b"", b"\x01" * 3072, b"\x0a" * 3073])
    def test_damaged_binary_batch(self, tmp_path, content):
        path = tmp_path / "test_batch.bin"
        path.write_bytes(content)
        with pytest.raises(BenchmarkError, match=r"test_batch.bin cannot be"):
            cifar10_files.read_binary_batch(str(path))

    def test_damaged_jpeg_archive(self, tmp_path, images):
        arrays = jpeg_arrays(*images)
        path = tmp_path / cifar10_files.JPEG_FILE

        def raises(match, **changed):
            np.savez(path, **{**arrays, **changed})
            with pytest.raises(BenchmarkError, match=match):
                cifar10_files.read(str(tmp_path))

        raises("no JPEG", train_bytes=arrays["train_bytes"] * 0)
        raises("must point", train_offsets=arrays["train_offsets"][::-1])
        raises("0 to 9", test_labels=np.asarray([0, 10], np.uint8))
        raises("allow_pickle", test_labels=np.asarray([{}, {}], object))
        np.savez(path, train_bytes=arrays["train_bytes"])
        with pytest.raises(BenchmarkError, match="train_offsets"):
            cifar10_files.read(str(tmp_path))
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(BenchmarkError, match="cannot be read"):
            cifar10_files.read(str(tmp_path))

    def test_missing_files(self, tmp_path, images):
        with pytest.raises(BenchmarkError, match=r"--data_dir.*must hold"):
            cifar10_files.read(str(tmp_path))
        write_binary(tmp_path, *images)
        (tmp_path / "data_batch_4.bin").unlink()
        with pytest.raises(BenchmarkError, match=r"Missing.*data_batch_4.bin"):
            cifar10_files.read(str(tmp_path))


class TestSplits:
    def test_digits_are_stratified_disjoint_and_complete(self):
        splits = data.load(config.resolve({"seed": 3}))
        sets = [splits.train, splits.validation, splits.test]
        assert [len(s) for s in sets] == [1150, 288, 359]
        images = np.concatenate([s.images.reshape(-1, 64) for s in sets])
        from_sklearn = load_digits()
        assert sorted(map(bytes, images)) == sorted(
            map(bytes, from_sklearn.data.astype(np.uint8))
        )
        shares = np.bincount(from_sklearn.target) / 1797
        for part in sets:
            counts = np.bincount(part.labels, minlength=10)
            assert np.all(np.abs(counts - shares * len(part)) <= 1.0)

    def test_split_is_a_function_of_the_seed(self):
        one, same, other = (
            data.load(config.resolve({"seed": seed})) for seed in (1, 1, 2)
        )
        for part in ("train", "validation", "test"):
            np.testing.assert_array_equal(
                getattr(one, part).images, getattr(same, part).images
            )
        assert not np.array_equal(
            one.validation.labels, other.validation.labels
        )
        np.testing.assert_array_equal(one.test.images, other.test.images)

    def test_sides_have_no_example_in_common(self):
        labels = np.arange(100, dtype=np.int32) % 10
        numbered = data.Examples(np.arange(100), labels)
        first, second = data.split(numbered, 80, seed=0)
        assert np.bincount(first.labels).tolist() == [8] * 10
        assert np.bincount(second.labels).tolist() == [2] * 10
        together = np.concatenate([first.images, second.images])
        assert sorted(together) == list(range(100))

    @pytest.mark.parametrize(
        "flags",
        [
            {"max_samples": 5000},
            {"max_samples": 12},
            {"batch_size": 1200},
            {"refit_samples": 2000},
        ],
    )
    def test_too_few_examples(self, flags):
        with pytest.raises(BenchmarkError, match=f"--{next(iter(flags))}"):
            data.load(config.resolve(flags))


def collect(dataset):
    images, labels = zip(*dataset.as_numpy_iterator())
    return np.concatenate(images), np.concatenate(labels)


def gradient_splits(flip):
    """Images that are all different and in which every pixel is."""
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    images = np.stack([ramp + i for i in range(20)])
    examples = data.Examples(images, np.arange(20, dtype=np.int32))
    return data.Splits(examples, examples, examples, shift=1, flip=flip)


class TestBatches:
    def test_training_is_a_function_of_seed_and_epoch(self):
        splits = gradient_splits(flip=True)

        def run(seed, epoch):
            return collect(data.training_batches(splits, 8, seed, [epoch]))

        images, labels = run(0, 1)
        again, labels_again = run(0, 1)
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(labels, labels_again)
        for seed, epoch in ((0, 2), (1, 1)):
            others, other_labels = run(seed, epoch)
            assert not np.array_equal(labels, other_labels)
            by_label = dict(zip(other_labels, others))
            moved = [
                not np.array_equal(image, by_label[label])
                for image, label in zip(images, labels)
                if label in by_label
            ]
            assert any(moved), "the augmentation does not change"

    def test_each_example_once_and_only_full_batches(self):
        images, labels = collect(
            data.training_batches(gradient_splits(flip=False), 8, 0, [1])
        )
        assert images.shape == (16, 8, 8, 1)
        assert len(set(labels.tolist())) == 16

    def test_epochs_in_a_row_are_those_made_one_by_one(self):
        splits = gradient_splits(flip=True)

        def run(epochs):
            return collect(data.training_batches(splits, 8, 3, epochs))

        together = run(range(2, 5))
        one_by_one = zip(*(run([epoch]) for epoch in (2, 3, 4)))
        for found, wanted in zip(together, one_by_one):
            np.testing.assert_array_equal(found, np.concatenate(wanted))

    @pytest.mark.parametrize("flip", [False, True])
    def test_augmented_images_are_shifted_or_mirrored(self, flip):
        splits = gradient_splits(flip)
        seen = set()
        for epoch in range(6):
            images, labels = collect(
                data.training_batches(splits, 20, 0, [epoch])
            )
            for image, label in zip(images, labels):
                padded = np.pad(splits.train.images[label, ..., 0], 1)
                candidates = {
                    (y, x, mirror): padded[y : y + 8, x : x + 8][:, ::mirror]
                    for y in range(3)
                    for x in range(3)
                    for mirror in (1, -1)
                }
                matches = [
                    key
                    for key, candidate in candidates.items()
                    if np.allclose(
                        standardized(candidate), image[..., 0], atol=1e-4
                    )
                ]
                assert len(matches) == 1
                seen.add(matches[0])
        expected = 18 if flip else 9
        assert len(seen) == expected
        assert flip or all(mirror == 1 for _, _, mirror in seen)

    def test_plain_batches_are_not_augmented(self):
        examples = gradient_splits(flip=True).train
        images, labels = collect(data.plain_batches(examples, 6))
        np.testing.assert_array_equal(labels, examples.labels)
        expected = [standardized(image) for image in examples.images]
        np.testing.assert_allclose(images, expected, atol=1e-5)

    def test_digits_are_never_mirrored(self):
        splits = data.load(config.resolve({}))
        assert not splits.flip
        assert splits.shift == 1


def standardized(image):
    """Mean 0 and deviation 1, in float64."""
    image = np.asarray(image, np.float64)
    return (image - image.mean()) / max(image.std(), image.size**-0.5)
