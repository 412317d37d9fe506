"""Checkpoints in other ways of TensorFlow's: averaged, damaged, refused."""

import os
import random
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from tests import forged_index, programs
from tests.checkpoint_files import contents
from tests.damage import (
    PICKLE,
    TEXT,
    claims,
    data_of,
    entries_changed,
    flipped,
    flipped_index,
    itself,
    missing,
    replaced_by,
    truncated,
)


def write_sharded(path, value):
    """One file for each device."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for i in range(2):
            with tf.device(f"/cpu:{i}"):
                initial = np.full((4, 3), value + i, np.float32)
                tf.compat.v1.Variable(initial, name=f"w{i}")
        save(session, path, sharded=True)


def write_sliced(path, value):
    """A partitioned variable."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.get_variable(
            "w",
            (4, 3),
            initializer=tf.compat.v1.constant_initializer(value),
            partitioner=tf.compat.v1.fixed_size_partitioner(2),
        )
        save(session, path)


def write_version_1(path, value):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.Variable(np.full((4, 3), value, np.float32), name="w")
        save(session, path, write_version=tf.compat.v1.train.SaverDef.V1)


def write_iterator(path, value):
    """The state of a data pipeline: variants."""
    iterator = iter(tf.data.Dataset.range(9).shuffle(3, seed=1))
    next(iterator)
    weight = tf.Variable(np.full((4, 3), value, np.float32))
    tf.train.Checkpoint(iterator=iterator, w=weight).write(path)


def save(session, path, **kwargs):
    session.run(tf.compat.v1.global_variables_initializer())
    saver = tf.compat.v1.train.Saver(**kwargs)
    saver.save(session, path, write_meta_graph=False, write_state=False)


def second_shard(path):
    return f"{path}.data-00001-of-00002"


def flipped_anywhere(file):
    def damage(rng, path):
        flipped(file(path), rng.randrange(os.path.getsize(file(path))), rng)

    return damage


def flipped_variant(rng, path):
    entries = forged_index.read(path)
    (key,) = [key for key in entries if b"ITERATOR" in key]
    entry = forged_index.entry(entries, key)
    flipped(data_of(path), entry.offset + rng.randrange(entry.size), rng)


def slice_negative(rng, path):
    entries = forged_index.read(path)
    entry = forged_index.entry(entries, b"w")
    entry.slices[0].extent[0].length = -1
    entries[b"w"] = entry.SerializeToString()
    forged_index.write(path, entries)


def slice_twice(rng, path):
    entries = forged_index.read(path)
    entry = forged_index.entry(entries, b"w")
    entry.slices.append(entry.slices[0])
    entries[b"w"] = entry.SerializeToString()
    forged_index.write(path, entries)


def slice_not_decodable(rng, path):
    entries = forged_index.read(path)
    entries[next(key for key in entries if key[:1] == b"\0")] = b"\xff"
    forged_index.write(path, entries)


@pytest.mark.parametrize(
    ("write", "damage", "reason"),
    [
        (write_sharded, missing(second_shard), "00001-of-00002; No such file"),
        (write_sharded, truncated(second_shard), "cannot be read"),
        (write_sharded, flipped_anywhere(second_shard), "Checksum"),
        (write_sliced, truncated(data_of), "'w' cannot be read"),
        (write_sliced, flipped_anywhere(data_of), "'w' cannot be read"),
        (write_sliced, flipped_index, "index cannot be read"),
        (
            write_sliced,
            claims(b"w", dims=[1 << 40, 3]),
            "same tensors|cannot be read",
        ),
        (write_version_1, truncated(itself), "index cannot be read"),
        (write_version_1, replaced_by(itself, TEXT), "index cannot be read"),
        (write_version_1, replaced_by(itself, PICKLE), "index cannot be read"),
        (write_version_1, replaced_by(itself, b""), "index cannot be read"),
        (write_iterator, flipped_variant, "cannot be read"),
    ],
)
@pytest.mark.parametrize("which", range(3))
def test_other_ways(write, damage, reason, which, tmp_path):
    paths = [os.fspath(tmp_path / f"ckpt-{i}") for i in range(3)]
    for i, path in enumerate(paths):
        write(path, float(i))
    output = os.fspath(tmp_path / "new" / "average")
    swa_tf.average_checkpoints(paths, output)
    average = tf.train.load_checkpoint(output)
    for key, shape in average.get_variable_to_shape_map().items():
        if shape == [4, 3]:
            value = 2.0 if key == "w1" else 1.0
            np.testing.assert_array_equal(average.get_tensor(key), value)
    shutil.rmtree(tmp_path / "new")
    damage(random.Random(which), paths[which])
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=reason) as error:
        swa_tf.average_checkpoints(paths, output)
    assert str(error.value).startswith("`inputs` must ")
    assert f"'{paths[which]}'" in str(error.value)
    assert contents(tmp_path) == before


W = b"w/.ATTRIBUTES/VARIABLE_VALUE"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "damage"),
    [
        (write_iterator, claims(W, dims=[-1])),
        (write_iterator, claims(W, dims=[-4, -3])),
        (write_iterator, entries_changed(lambda e: e.update({W: b"\xff"}))),
        (write_sliced, claims(b"w", dims=[-4, 3])),
        (write_sliced, slice_twice),
        (write_sliced, slice_not_decodable),
    ],
)
def test_a_forged_index_that_ends_the_process(write, damage, tmp_path):
    """TensorFlow's reader does, as docs/checkpoints.md says.

    Nothing is written, and nothing left.
    """
    paths = [os.fspath(tmp_path / f"ckpt-{i}") for i in range(2)]
    for i, path in enumerate(paths):
        write(path, float(i))
    damage(random.Random(0), paths[1])
    before = contents(tmp_path)
    output = tmp_path / "new" / "average"
    done = programs.run_module(
        "swa_tf.average_checkpoints_main", f"--output_path={output}", *paths
    )
    assert done.returncode == -signal.SIGABRT
    assert contents(tmp_path) == before
