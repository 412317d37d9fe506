"""Damaged inputs, full disks and interrupts: an average is whole or absent."""

import builtins
import io
import json
import marshal
import os
import pathlib
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import time
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from tensorflow.core.protobuf import (
    tensor_bundle_pb2,
    trackable_object_graph_pb2,
)

import swa_tf
from swa_tf import _files, average_checkpoints_main
from swa_tf._checkpoint_files import sstable, tensor_bundle
from tests import checkpoint_files, programs
from tests.checkpoint_files import FORMS, H5, KERAS, NAME, OBJECT, WEIGHTS

ROOT = pathlib.Path(__file__).resolve().parent.parent
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 20
TEXT = b"epoch,loss\n" + b"1,0.5\n" * 500
PICKLE = pickle.dumps({"weights": np.ones((20, 20))})


# What becomes of an input. Each function is given random numbers and a path.


def _data(path):
    return f"{path}.data-00000-of-00001"


def _index(path):
    return f"{path}.index"


def _itself(path):
    return path


def truncated(file):
    def damage(rng, path):
        size = os.path.getsize(file(path))
        os.truncate(file(path), rng.randrange(size))

    return damage


def replaced_by(file, content):
    def damage(rng, path):
        pathlib.Path(file(path)).write_bytes(content)

    return damage


def missing(file):
    def damage(rng, path):
        os.unlink(file(path))

    return damage


def directory(file):
    def damage(rng, path):
        os.unlink(file(path))
        os.mkdir(file(path))

    return damage


def symlink_loop(file):
    def damage(rng, path):
        os.unlink(file(path))
        os.symlink(os.path.basename(file(path)), file(path))

    return damage


def pipe(file):
    def damage(rng, path):
        os.unlink(file(path))
        os.mkfifo(file(path))

    return damage


def flipped(file, at, rng):
    with open(file, "r+b") as opened:
        opened.seek(at)
        (byte,) = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte ^ 1 << rng.randrange(8)]))


def flipped_index(rng, path):
    flipped(_index(path), rng.randrange(os.path.getsize(_index(path))), rng)


def flipped_tensor(rng, path):
    """A bit of one tensor, be it averaged or not."""
    tensors = tensor_bundle.TensorBundle(path).tensors
    tensor = tensors[rng.choice(sorted(tensors))]
    flipped(tensor.file, tensor.offset + rng.randrange(tensor.nbytes), rng)


def flipped_member(rng, path):
    with zipfile.ZipFile(path) as file:
        member = rng.choice(file.infolist())
    start = member.header_offset + 30 + len(member.filename)
    flipped(path, start + rng.randrange(member.file_size), rng)


def claims(key=None, **wrong):
    """An index, with right checksums, that is wrong about one tensor."""

    def damage(rng, path):
        entries = dict(sstable.read(pathlib.Path(_index(path)).read_bytes()))
        # One that has dimensions.
        keys = [k for k, e in entries.items() if k and _dims(e)]
        chosen = key or rng.choice(keys)
        entry = tensor_bundle_pb2.BundleEntryProto.FromString(entries[chosen])
        for field, value in wrong.items():
            if field == "dims":
                del entry.shape.dim[:]
                for size in value:
                    entry.shape.dim.add(size=size)
            else:
                setattr(entry, field, value)
        entries[chosen] = entry.SerializeToString()
        write_index(path, entries)

    return damage


def _dims(entry):
    return tensor_bundle_pb2.BundleEntryProto.FromString(entry).shape.dim


def claims_shards(count):
    def damage(rng, path):
        entries = dict(sstable.read(pathlib.Path(_index(path)).read_bytes()))
        header = tensor_bundle_pb2.BundleHeaderProto.FromString(entries[b""])
        header.num_shards = count
        entries[b""] = header.SerializeToString()
        write_index(path, entries)

    return damage


def entries_changed(change):
    def damage(rng, path):
        entries = dict(sstable.read(pathlib.Path(_index(path)).read_bytes()))
        change(entries)
        write_index(path, entries)

    return damage


def write_index(path, entries):
    table = sstable.write(sorted(entries.items()))
    pathlib.Path(_index(path)).write_bytes(table)


def graph_replaced(graph):
    """An object graph, with right checksums, that is none."""

    def damage(rng, path):
        entries = dict(sstable.read(pathlib.Path(_index(path)).read_bytes()))
        key = b"_CHECKPOINTABLE_OBJECT_GRAPH"
        entry = tensor_bundle_pb2.BundleEntryProto.FromString(entries[key])
        encoded, crc32c = tensor_bundle._encoded(graph)
        entry.offset, entry.size = os.path.getsize(_data(path)), len(encoded)
        entry.crc32c = sstable.masked(crc32c)
        entries[key] = entry.SerializeToString()
        with open(_data(path), "ab") as data:
            data.write(encoded)
        write_index(path, entries)

    return damage


def graph_without_end():
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.nodes.add().children.add(node_id=7, local_name="x")
    return graph.SerializeToString()


def changed(change):
    """A sound checkpoint of other tensors."""

    def damage(rng, path):
        form = form_of(path)
        for file in checkpoint_files.files(form, path):
            os.unlink(file)
        values = {
            "kernel": np.ones((2, 3), np.float32),
            "bias": np.ones(3, np.float32),
        }
        if change == "no weights":
            values = {"count": np.ones(3, np.int64)}
        elif change == "additional":
            values["more"] = np.ones(2, np.float32)
        elif change == "missing":
            del values["bias"]
        elif change == "shape":
            values["kernel"] = values["kernel"].T
        elif change == "dtype":
            values["kernel"] = values["kernel"].astype(np.float16)
        checkpoint_files.write(form, path, values)

    return damage


def form_of(path):
    for form in (WEIGHTS, KERAS, H5):
        if path.endswith(form):
            return form
    names = pathlib.Path(_index(path)).read_bytes()
    return OBJECT if b"_CHECKPOINTABLE_OBJECT_GRAPH" in names else NAME


def hdf5(change):
    """Changes what an HDF5 file holds; `.keras` is a zip with one."""

    def damage(rng, path):
        if not path.endswith(KERAS):
            with h5py.File(path, "r+") as file:
                change(file)
            return
        with zipfile.ZipFile(path) as file:
            members = {name: file.read(name) for name in file.namelist()}
        weights = io.BytesIO(members["model.weights.h5"])
        with h5py.File(weights, "r+") as file:
            change(file)
        members["model.weights.h5"] = weights.getvalue()
        with zipfile.ZipFile(path, "w") as file:
            for name, content in members.items():
                file.writestr(name, content)

    return damage


def soft_link(file):
    file["soft"] = h5py.SoftLink("/elsewhere")


def external_link(file):
    file["external"] = h5py.ExternalLink("/etc/passwd", "/")


def hard_link(file):
    file["again"] = file


def external_storage(file):
    file.create_dataset(
        "out", (3,), "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    )


def virtual(file):
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (3,))
    file.create_virtual_dataset("virtual", layout)


def bomb(file):
    file.create_dataset("bomb", (1 << 50,), "f4", chunks=(1024,))


def no_known_type(file):
    file.create_dataset("opaque", (3,), "V2")


def zipped(**how):
    """A `.keras` file that is zipped anew, with a member changed."""

    def damage(rng, path):
        with zipfile.ZipFile(path) as file:
            members = {name: file.read(name) for name in file.namelist()}
        if "without" in how:
            del members[how["without"]]
        if "content" in how:
            members["model.weights.h5"] = how["content"]
        method = how.get("method", zipfile.ZIP_STORED)
        with zipfile.ZipFile(path, "w", method) as file:
            for name, content in members.items():
                file.writestr(name, content)
        if "flags" in how:  # of each member, here and in the directory
            content = bytearray(pathlib.Path(path).read_bytes())
            for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
                start = content.find(mark)
                while start >= 0:
                    content[start + at] |= how["flags"]
                    start = content.find(mark, start + 1)
            pathlib.Path(path).write_bytes(content)

    return damage


DIFFERING = {
    f"differs in {change}": (changed(change), reason)
    for change, reason in {
        "no weights": "must hold",
        "additional": "same tensors",
        "missing": "same tensors",
        "shape": "same tensors",
        "dtype": "same tensors",
    }.items()
}

TENSORFLOW = {
    "data truncated": (truncated(_data), "ends before"),
    "data truncated ": (truncated(_data), "ends before"),
    "index truncated": (truncated(_index), "cut off"),
    "index truncated ": (truncated(_index), "cut off"),
    **{
        f"tensor flipped {i}": (flipped_tensor, "checksum|cut off|is wrong")
        for i in range(16)
    },
    **{f"index flipped {i}": (flipped_index, "index|format") for i in range(8)},
    "data empty": (replaced_by(_data, b""), "ends before"),
    "index empty": (replaced_by(_index, b""), "cut off"),
    "data a text": (replaced_by(_data, TEXT), "checksum|ends before|too long"),
    "index a text": (replaced_by(_index, TEXT), "no.* table of this format"),
    "index a png": (replaced_by(_index, PNG), "table of this format"),
    "index a pickle": (replaced_by(_index, PICKLE), "table of this format"),
    "data missing": (missing(_data), "data-00000-of-00001 is missing"),
    "index missing": (missing(_index), "index is missing"),
    "data a directory": (directory(_data), "no file"),
    "index a directory": (directory(_index), "no file"),
    "data a loop": (symlink_loop(_data), "symbolic links"),
    "index a loop": (symlink_loop(_index), "symbolic links"),
    "index a pipe": (pipe(_index), "no file"),
    "huge offset": (claims(offset=1 << 62), "ends before"),
    "negative offset": (claims(offset=-1), "ends before"),
    "huge size": (claims(size=1 << 62), "index is wrong about"),
    "negative size": (claims(size=-1), "index is wrong about"),
    "huge shape": (claims(dims=[1 << 40, 1 << 20]), "index is wrong about"),
    "negative shape": (claims(dims=[-1]), "index is wrong about"),
    "twice negative": (
        claims(dims=[-3, -1], size=12),
        "index is wrong about",
    ),
    "another type": (claims(dtype=7), "same tensors|checksum|cut off"),
    "string of huge size": (claims(dtype=7, size=1 << 60), "ends before"),
    "no type": (claims(dtype=0), "type"),
    "unknown type": (claims(dtype=99), "type"),
    "a resource": (claims(dtype=20), "type"),
    "wrong shard": (claims(shard_id=3), "index is wrong about"),
    "negative shard": (claims(shard_id=-1), "index is wrong about"),
    "more shards": (claims_shards(2), "missing"),
    "many shards": (claims_shards((1 << 31) - 1), "missing"),
    "no shards": (claims_shards(0), "index is wrong about"),
    "no header": (entries_changed(lambda e: e.pop(b"")), "no header"),
    "name not in UTF-8": (
        entries_changed(lambda e: e.update({b"\xff\xfe": b""})),
        "cannot be decoded",
    ),
    "entry not decodable": (
        entries_changed(lambda e: e.update({b"kernel": b"\xff\xff"})),
        "cannot be decoded",
    ),
    **DIFFERING,
}

ONE_FILE = {
    **{
        f"truncated {i}": (truncated(_itself), "it is no whole")
        for i in range(8)
    },
    "empty": (replaced_by(_itself, b""), "it is no whole"),
    "a text": (replaced_by(_itself, TEXT), "it is no whole"),
    "a png": (replaced_by(_itself, PNG), "it is no whole"),
    "a pickle": (replaced_by(_itself, PICKLE), "it is no whole"),
    "missing": (missing(_itself), "exist"),
    "a directory": (directory(_itself), "directory"),
    "a loop": (symlink_loop(_itself), "symbolic links"),
    "a pipe": (pipe(_itself), "no file"),
    "soft link": (hdf5(soft_link), "'soft' is a link"),
    "external link": (hdf5(external_link), "'external' is a link"),
    "cycle": (hdf5(hard_link), "another name"),
    "virtual dataset": (hdf5(virtual), "'virtual' lies in another file"),
    "larger than it can be": (hdf5(bomb), "'bomb' is larger"),
    "no known type": (hdf5(no_known_type), "'opaque' is of no known type"),
    **DIFFERING,
}

DAMAGES = {
    OBJECT: {
        **TENSORFLOW,
        "graph not decodable": (graph_replaced(b"\xff\xff"), "object graph"),
        "graph a text": (graph_replaced(TEXT), "object graph"),
        "many strings": (
            claims(b"note/.ATTRIBUTES/VARIABLE_VALUE", dims=[1 << 60]),
            "cut off|too long",
        ),
        "graph incomplete": (
            graph_replaced(graph_without_end()),
            "object graph",
        ),
    },
    NAME: TENSORFLOW,
    WEIGHTS: {
        **ONE_FILE,
        "external storage": (hdf5(external_storage), "'out' lies in another"),
        "a zip": (replaced_by(_itself, b"PK\3\4" + bytes(9999)), "no whole"),
    },
    H5: {
        **ONE_FILE,
        "external storage": (hdf5(external_storage), "'out' lies in another"),
        "a zip": (replaced_by(_itself, b"PK\3\4" + bytes(9999)), "no whole"),
    },
    KERAS: {
        **ONE_FILE,
        **{
            f"member flipped {i}": (flipped_member, "checksum of .* is wrong")
            for i in range(12)
        },
        "an h5": (
            replaced_by(_itself, b"\x89HDF\r\n\x1a\n" + bytes(9999)),
            "no whole zip",
        ),
        "no weights": (zipped(without="model.weights.h5"), "holds no"),
        "compressed": (zipped(method=zipfile.ZIP_DEFLATED), "is compressed"),
        "compressed by bzip2": (zipped(method=zipfile.ZIP_BZIP2), "compressed"),
        "encrypted": (zipped(flags=1), "no whole zip file.*encrypted"),
        "weights no h5": (zipped(content=PICKLE), "no whole HDF5"),
        "weights empty": (zipped(content=b""), "no whole HDF5"),
    },
}

CASES = [
    pytest.param(form, name.strip(), i, damage, reason, id=f"{form} {name}{i}")
    for form, damages in DAMAGES.items()
    for i, (name, (damage, reason)) in enumerate(damages.items())
]
CASES += [  # another of the three, other random numbers
    pytest.param(form, name.strip(), i, damage, reason, id=f"{form} {name}{i}")
    for form, damages in DAMAGES.items()
    for i, (name, (damage, reason)) in enumerate(damages.items(), start=1001)
    if any(word in name for word in ("truncated", "flipped", "differs"))
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder for each form, with three checkpoints of a model."""
    folder = tmp_path_factory.mktemp("sound")
    for form in FORMS:
        (folder / form).mkdir()
        for i in range(3):
            path = checkpoint_files.path_of(form, folder / form, f"ckpt-{i}")
            checkpoint_files.write_trained(form, path, seed=i)
            tf.keras.backend.clear_session()
    return folder


@pytest.fixture
def three(sound, tmp_path):
    """Copies the three of a form, and returns their paths."""

    def copied(form):
        folder = tmp_path / "run"
        shutil.copytree(sound / form, folder)
        return [
            checkpoint_files.path_of(form, folder, f"ckpt-{i}")
            for i in range(3)
        ]

    return copied


def contents(folder):
    """All that is in a folder: what it is, its bytes and when it was made."""
    found = {}
    for path in sorted(pathlib.Path(folder).rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        if path.is_dir():
            found[path] = "a folder"
        else:
            found[path] = (status.st_mode, status.st_mtime_ns, content)
    return found


def command_line(*arguments):
    """Runs it in this process, and returns the exit status."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with flagsaver.flagsaver():
            argv = flags.FLAGS(["swa-average-checkpoints", *arguments])
            return average_checkpoints_main.main(argv)
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_there_are_300_damaged_inputs():
    assert len(CASES) >= 300


@pytest.mark.parametrize(("form", "name", "number", "damage", "reason"), CASES)
def test_a_damaged_input(
    form, name, number, damage, reason, three, tmp_path, capsys
):
    rng = random.Random(f"{form} {name} {number}")
    paths, which = three(form), number % 3
    if name.startswith("differs"):  # before, all are alike and sound
        for path in paths:
            changed("")(rng, path)
        swa_tf.average_checkpoints(
            paths, paths[0].replace("ckpt-0", "average"), dry_run=True
        )
        if name == "differs in no weights":
            for path in paths:
                damage(rng, path)
    damage(rng, paths[which])
    before = contents(tmp_path)
    folder = tmp_path / "new" / "folder" if number % 2 else tmp_path / "run"
    output = checkpoint_files.path_of(form, folder, "average")

    with pytest.raises((ValueError, OSError), match=reason) as error:
        swa_tf.average_checkpoints(paths, output)
    message = str(error.value)
    assert message.startswith("`inputs` must "), message
    if name != "differs in no weights":
        assert f"'{paths[which]}'" in message
    assert not message.rstrip().endswith(":")
    assert contents(tmp_path) == before

    assert command_line(f"--output_path={output}", *paths) == 1
    shown = capsys.readouterr()
    assert shown.err.lstrip().startswith("error: `inputs` must ")
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert "written" not in shown.out
    assert contents(tmp_path) == before


@pytest.mark.parametrize("form", FORMS)
def test_three_sound_inputs(form, three, tmp_path, capsys):
    """Else the tests here would show nothing."""
    output = checkpoint_files.path_of(form, tmp_path / "new", "average")
    assert command_line(f"--output_path={output}", *three(form)) == 0
    assert all(map(os.path.isfile, checkpoint_files.files(form, output)))
    assert output in capsys.readouterr().out


# Other ways in which TensorFlow writes checkpoints.


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
    tensors = tensor_bundle.TensorBundle(path).tensors
    (key,) = [key for key in tensors if "ITERATOR" in key]
    at = tensors[key].offset + rng.randrange(tensors[key].nbytes)
    flipped(tensors[key].file, at, rng)


def slice_negative(rng, path):
    entries = dict(sstable.read(pathlib.Path(_index(path)).read_bytes()))
    entry = tensor_bundle_pb2.BundleEntryProto.FromString(entries[b"w"])
    entry.slices[0].extent[0].length = -1
    entries[b"w"] = entry.SerializeToString()
    write_index(path, entries)


def slice_twice(rng, path):
    entries = dict(sstable.read(pathlib.Path(_index(path)).read_bytes()))
    entry = tensor_bundle_pb2.BundleEntryProto.FromString(entries[b"w"])
    entry.slices.append(entry.slices[0])
    entries[b"w"] = entry.SerializeToString()
    write_index(path, entries)


def slice_not_decodable(rng, path):
    entries = dict(sstable.read(pathlib.Path(_index(path)).read_bytes()))
    entries[next(key for key in entries if key[:1] == b"\0")] = b"\xff"
    write_index(path, entries)


@pytest.mark.parametrize(
    ("write", "damage", "reason"),
    [
        (write_sharded, missing(second_shard), "00001-of-00002 is missing"),
        (write_sharded, truncated(second_shard), "ends before"),
        (write_sharded, flipped_anywhere(second_shard), "checksum"),
        (write_sliced, truncated(_data), "ends before"),
        (write_sliced, flipped_anywhere(_data), "'w' cannot be read"),
        (write_sliced, flipped_index, "index|format"),
        (write_sliced, claims(b"w", dims=[1 << 40, 3]), "wrong about 'w'"),
        (write_sliced, claims(b"w", dims=[-4, 3]), "wrong about 'w'"),
        (write_sliced, slice_negative, "wrong about 'w'"),
        (write_sliced, slice_twice, "wrong about 'w'"),
        (write_sliced, slice_not_decodable, "cannot be decoded"),
        (write_version_1, truncated(_itself), "no checkpoint of TensorFlow"),
        (write_version_1, replaced_by(_itself, TEXT), "no checkpoint"),
        (write_version_1, replaced_by(_itself, PICKLE), "no checkpoint"),
        (write_version_1, replaced_by(_itself, b""), "no checkpoint"),
        (write_iterator, flipped_variant, "checksum|cut off|too long"),
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
    assert str(error.value).startswith("`inputs` must be whole checkpoints.")
    assert f"'{paths[which]}'" in str(error.value)
    assert contents(tmp_path) == before


def test_an_index_whose_entries_refer_to_what_is_not_there():
    """A key may begin as the one before it; the first has none before."""
    block = bytes([3, 1, 0]) + b"x" + struct.pack("<II", 0, 1)
    with pytest.raises(ValueError, match="damaged"):
        list(sstable._entries(block))


def test_a_compressed_member_beside_the_weights(three, tmp_path):
    """Others than the weights may be compressed, and stay so."""
    paths = three(KERAS)
    with zipfile.ZipFile(paths[2], "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("notes.txt", TEXT)
    output = os.fspath(tmp_path / "average.keras")
    swa_tf.average_checkpoints(paths, output)
    with zipfile.ZipFile(output) as file:
        assert file.testzip() is None
        assert file.read("notes.txt") == TEXT
        assert file.getinfo("notes.txt").compress_size < len(TEXT) / 2


def test_no_attributes_to_leave_the_optimizer_out_by(three, tmp_path):
    """HDF5 notices what is wrong with them only when they are copied."""
    paths = three(H5)
    content = bytearray(pathlib.Path(paths[2]).read_bytes())
    at = content.find(b"model_config") + len("model_config")
    config = content.find(b"keras_version")
    assert 0 < at < config or config >= 0
    heap = content.find(b"GCOL")
    content[heap + 16 : heap + 32] = b"\xff" * 16
    pathlib.Path(paths[2]).write_bytes(content)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"`inputs`.*ckpt-2\.h5': ."):
        swa_tf.average_checkpoints(
            paths, os.fspath(tmp_path / "a.h5"), optimizer_slots="drop"
        )
    assert contents(tmp_path) == before


# Nothing in a file is run.


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


MALICIOUS = pickle.dumps(Malicious())
MALICIOUS_TEXT = pickle.dumps(Malicious(), 0).decode()


@pytest.fixture
def nothing_runs(monkeypatch):
    """Lets all that could run what is in a file fail."""

    def fail(*args, **kwargs):
        raise SystemError("this would run what is in a file")

    for name in ("load", "loads", "Unpickler", "_load", "_loads", "_Unpickler"):
        monkeypatch.setattr(pickle, name, fail)
    for name in ("load", "loads"):
        monkeypatch.setattr(marshal, name, fail)
    for name in ("load_model", "model_from_json", "model_from_config"):
        if hasattr(tf.keras.models, name):
            monkeypatch.setattr(tf.keras.models, name, fail)
    for name in ("deserialize_keras_object", "load_model", "load_weights"):
        for module in (tf.keras.utils, getattr(tf.keras, "saving", None)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr(tf.keras.layers, "deserialize", fail)
    monkeypatch.setattr(tf.keras.Model, "from_config", fail)
    monkeypatch.setattr(np, "load", fail)
    with monkeypatch.context() as patched:
        for name in ("eval", "exec"):
            patched.setattr(builtins, name, fail)
        yield


def malicious_hdf5(file):
    content = np.void(MALICIOUS)
    file.attrs["model_config"] = content
    file.attrs["more"] = content
    file.create_group("pickled").attrs["weight_names"] = content
    strings = file.create_dataset("pickled/string", (), h5py.string_dtype())
    strings[()] = MALICIOUS_TEXT
    file["pickled/bytes"] = np.frombuffer(content.tobytes(), np.uint8)


def malicious_config(rng, path):
    """A Lambda layer, and members that are pickles."""
    code = MALICIOUS_TEXT
    layer = {
        "class_name": "Lambda",
        "config": {"name": "evil", "function": [code, None, None]},
        "registered_name": None,
        "module": "keras.layers",
    }
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"] = [layer, *config["config"]["layers"]]
    members["config.json"] = json.dumps(config).encode()
    members["custom_objects.pkl"] = MALICIOUS
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)


@pytest.mark.parametrize(
    ("form", "damage"),
    [
        (WEIGHTS, hdf5(malicious_hdf5)),
        (H5, hdf5(malicious_hdf5)),
        (KERAS, hdf5(malicious_hdf5)),
        (KERAS, malicious_config),
    ],
)
@pytest.mark.parametrize("slots", ["keep", "drop"])
def test_what_is_in_a_file_is_not_run(
    form, damage, slots, three, tmp_path, nothing_runs
):
    paths = three(form)
    for path in paths:
        damage(None, path)
    output = os.fspath(tmp_path / f"average{form}")
    report = swa_tf.average_checkpoints(paths, output, optimizer_slots=slots)
    assert len(report["averaged"]) == 6  # of a dense layer and batch norm
    assert os.path.isfile(output)


@pytest.mark.parametrize("form", FORMS)
def test_a_pickle_is_refused(form, tmp_path, nothing_runs):
    paths = [checkpoint_files.path_of(form, tmp_path, f"{i}") for i in range(2)]
    for path in paths:
        for file in checkpoint_files.files(form, path):
            pathlib.Path(file).write_bytes(MALICIOUS)
    output = checkpoint_files.path_of(form, tmp_path, "average")
    with pytest.raises(ValueError, match="must be whole checkpoints"):
        swa_tf.average_checkpoints(paths, output)


# Disks that are full, and folders that cannot be written to.


@pytest.mark.parametrize("slots", ["keep", "drop"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("form", FORMS)
def test_no_space_left(form, part, slots, three, tmp_path, capsys):
    """As the kernel reports it: a limit on the size of files."""
    paths = three(form)
    before = contents(tmp_path)
    output = checkpoint_files.path_of(form, tmp_path / "new" / "x", "average")
    sizes = map(os.path.getsize, checkpoint_files.files(form, paths[2]))
    limit = int(part * max(sizes) * (1 if slots == "keep" else 0.5))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises((OSError, ValueError), match=r"large|space|write"):
            swa_tf.average_checkpoints(paths, output, optimizer_slots=slots)
        assert contents(tmp_path) == before
        status = command_line(
            f"--output_path={output}", f"--optimizer_slots={slots}", *paths
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 1
    assert contents(tmp_path) == before
    assert capsys.readouterr().err.lstrip().startswith("error: ")


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_that_cannot_be_written_to(
    form, three, tmp_path, monkeypatch, capsys
):
    paths = three(form)
    locked = tmp_path / "locked"
    locked.mkdir()
    (tmp_path / "file").write_text("")
    before = contents(tmp_path)
    make = os.mkdir

    def mkdir(path, *args, **kwargs):  # root may write to all folders
        if os.fspath(path).startswith(os.fspath(locked)):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        make(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", mkdir)
    for folder in (locked, locked / "new", tmp_path / "file" / "x", "/proc/x"):
        output = checkpoint_files.path_of(form, folder, "average")
        with pytest.raises(
            (OSError, ValueError), match=r"denied|directory|`output`"
        ):
            swa_tf.average_checkpoints(paths, output)
        assert command_line(f"--output_path={output}", *paths) == 1
        assert capsys.readouterr().err.lstrip().startswith("error: ")
        assert contents(tmp_path) == before


# Interrupts at each moment at which files are made, moved and removed.


def interrupted_at(number, block):
    """Runs `block`; KeyboardInterrupt at one call that `_files` makes.

    As Python does: when a function begins, or one in C has returned.

    Returns:
        Whether it came to that.
    """
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        if event not in ("call", "c_return") or not within(frame):
            return
        count += 1
        if count == number:
            sys.setprofile(None)
            raise KeyboardInterrupt

    def within(frame):
        for _ in range(3):
            if frame and frame.f_code.co_filename == _files.__file__:
                return True
            frame = frame and frame.f_back
        return False

    sys.setprofile(profile)
    try:
        block()
    except (KeyboardInterrupt, OSError):  # `rmtree` makes one of the other
        return True
    finally:
        sys.setprofile(None)
    return False


def test_an_interrupt_at_each_moment_of_making_and_moving(tmp_path):
    output = tmp_path / "new" / "folder" / "x"
    names = ["x.json", "x.data", "x.index"]

    def write():
        with _files.scratch_folder(output) as scratch:
            for name in names:
                (scratch / name).write_text(name)
            files = [scratch / name for name in names]
            _files.move(files, output.parent)

    for number in range(1, 9999):
        interrupted = interrupted_at(number, write)
        left = sorted(path.name for path in tmp_path.rglob("*"))
        assert left in ([], sorted([*names, "new", "folder"])), number
        if not interrupted:
            break
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
    assert left
    assert number > 20


@pytest.mark.slow
@pytest.mark.parametrize("form", [OBJECT, KERAS])
def test_an_interrupt_at_each_moment(form, three, tmp_path):
    paths = three(form)
    folder = tmp_path / "new"
    output = checkpoint_files.path_of(form, folder, "average")

    def average():
        swa_tf.average_checkpoints(paths, output)

    average()
    whole = {path.name for path in folder.iterdir()}
    shutil.rmtree(folder)
    before = contents(tmp_path)
    for number in range(1, 9999):
        interrupted = interrupted_at(number, average)
        left = (
            {path.name for path in folder.iterdir()}
            if (folder.exists())
            else set()
        )
        assert left in (set(), whole), number
        if left:
            tf.train.load_checkpoint(output) if form == OBJECT else (
                zipfile.ZipFile(output).testzip()
            )
            shutil.rmtree(folder)
        assert contents(tmp_path) == before, number
        if not interrupted:
            break
    assert number > 20


@pytest.mark.parametrize("fails", range(4))
def test_files_are_moved_in_order_and_all_or_none(fails, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    names = ["x.json", "x.data", "x.index"]
    files = [tmp_path / "scratch" / name for name in names]
    for file in files:
        file.write_text(file.name)
    (tmp_path / "other").write_text("other")
    rename, moved = os.rename, []

    def renamed(source, target):
        if len(moved) == fails:
            raise KeyboardInterrupt
        rename(source, target)
        moved.append(os.path.basename(target))

    monkeypatch.setattr(os, "rename", renamed)
    if fails == len(names):
        _files.move(files, tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            _files.move(files, tmp_path)
    assert moved == names[:fails]
    left = {path.name for path in tmp_path.iterdir()} - {"scratch", "other"}
    assert left == (set(names) if fails == len(names) else set())


@pytest.mark.parametrize("form", FORMS)
def test_what_counts_is_moved_last(form, three, tmp_path, monkeypatch):
    rename, moved = os.rename, []

    def renamed(source, target):
        if pathlib.Path(target).parent == tmp_path:
            moved.append(os.path.basename(target))
        rename(source, target)

    monkeypatch.setattr(os, "rename", renamed)
    output = checkpoint_files.path_of(form, tmp_path, "average")
    swa_tf.average_checkpoints(three(form), output)
    names = [
        os.path.basename(file) for file in checkpoint_files.files(form, output)
    ]
    assert moved == [f"{os.path.basename(output)}.json", *names]


# Real processes, really killed.

MAIN = """
import os, sys
from absl import flags
from swa_tf import average_checkpoints_main

status = 9
try:
    argv = flags.FLAGS(["average", *sys.argv[1:]])
    status = average_checkpoints_main.main(argv)
except SystemExit as exit:
    status = exit.code
except KeyboardInterrupt:
    status = 130
finally:
    os._exit(status)  # at once: what Python does at its end takes longer
"""


def run_and_signal(arguments, number, delay):
    """Runs the command line, and sends it a signal after so many seconds."""
    began = time.monotonic()
    program = programs.Program(arguments, code=MAIN)
    if number is not None:
        time.sleep(delay)
        os.kill(program.pid, number)
    return program.wait().returncode, time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_killed_at_random_moments(form, tmp_path):
    rng = np.random.default_rng(0)
    values = [
        {f"w{i}": rng.normal(size=(1 << 17,)).astype("f4") for i in range(8)}
        for _ in range(3)
    ]
    mean = {
        key: np.mean([np.float64(v[key]) for v in values], axis=0)
        for key in values[0]
    }
    paths = [checkpoint_files.path_of(form, tmp_path, f"{i}") for i in range(3)]
    for path, value in zip(paths, values):
        checkpoint_files.write(form, path, value)
    before = contents(tmp_path)
    number = 0

    def outcome(sent, delay):
        """Runs one, and returns whether the output is there."""
        nonlocal number
        number += 1
        folder = tmp_path / f"new{number}"
        output = checkpoint_files.path_of(form, folder, "average")
        status, seconds = run_and_signal(
            [f"--output_path={output}", *paths], sent, delay
        )
        left = [p.name for p in folder.iterdir()] if folder.exists() else []
        *_, counts = checkpoint_files.files(form, output)
        whole = os.path.exists(counts)
        if whole:
            average = checkpoint_files.read(form, output, values[0])
            for key, value in mean.items():
                # Rounded once to float32: half a unit in the last place.
                np.testing.assert_allclose(average[key], value, rtol=2**-24)
            report = json.loads(pathlib.Path(f"{output}.json").read_text())
            assert len(report["averaged"]) == 8
        elif form in (OBJECT, NAME):
            with pytest.raises((tf.errors.OpError, ValueError)):
                tf.train.load_checkpoint(output)
        if status == 0:
            assert whole
        if sent in (None, signal.SIGTERM, signal.SIGINT):
            files = checkpoint_files.files(form, output)
            names = [*map(os.path.basename, files)]
            names.append(f"{os.path.basename(output)}.json")
            assert sorted(left) == (sorted(names) if whole else [])
            assert whole or not folder.exists()
        shutil.rmtree(folder, ignore_errors=True)
        assert contents(tmp_path) == before
        tf.keras.backend.clear_session()
        return whole, seconds

    whole, _ = outcome(None, 0)
    assert whole
    _, seconds = outcome(None, 0)  # without what is done once
    moments = random.Random(0)
    for sent, times in (
        (signal.SIGKILL, 20),
        (signal.SIGTERM, 5),
        (signal.SIGINT, 5),
    ):
        found = [
            outcome(sent, (i + moments.random()) / times * seconds * 1.05)[0]
            for i in range(times)
        ]
        assert not found[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "damage"),
    [(OBJECT, truncated(_data)), (KERAS, flipped_member)],
)
def test_the_program_refuses_a_damaged_input(form, damage, three, tmp_path):
    paths = three(form)
    damage(random.Random(0), paths[1])
    before = contents(tmp_path)
    output = checkpoint_files.path_of(form, tmp_path / "new", "average")
    done = programs.run_module(
        "swa_tf.average_checkpoints_main", f"--output_path={output}", *paths
    )
    assert done.returncode == 1
    assert "\nerror: `inputs` must be whole" in f"\n{done.stderr}"
    assert f"'{paths[1]}'" in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(tmp_path) == before
