"""Functions that damage a checkpoint, or a disk, in all kinds of ways."""

import contextlib
import io
import os
import pathlib
import pickle
import resource
import struct
import zipfile

import h5py
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import (
    tensor_bundle_pb2,
    trackable_object_graph_pb2,
)

from tests import checkpoint_files, forged_index
from tests.checkpoint_files import H5, KERAS, NAME, OBJECT, WEIGHTS

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 20
TEXT = b"epoch,loss\n" + b"1,0.5\n" * 500
PICKLE = pickle.dumps({"weights": np.ones((20, 20))})


@contextlib.contextmanager
def disk_full_after(size):
    """No file can grow beyond so many bytes, as the kernel reports it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def data_of(path):
    return f"{path}.data-00000-of-00001"


def index_of(path):
    return f"{path}.index"


def itself(path):
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
    flipped(index_of(path), rng.randrange(os.path.getsize(index_of(path))), rng)


def flipped_tensor(rng, path):
    """A bit of one tensor, be it averaged or not."""
    entries = forged_index.read(path)
    entry = forged_index.entry(entries, rng.choice(sorted(entries)[1:]))
    flipped(data_of(path), entry.offset + rng.randrange(entry.size), rng)


def flipped_lzma(rng, path):
    """A member that no decoder of LZMA takes."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_LZMA) as file:
        file.writestr("notes.txt", TEXT)
        at = file.getinfo("notes.txt").header_offset + 30 + len("notes.txt")
    with open(path, "r+b") as file:
        file.seek(at + 4)  # after two bytes of version and two of length
        file.write(b"\xff" * 5)  # the properties


def flipped_member(rng, path):
    with zipfile.ZipFile(path) as file:
        member = rng.choice(file.infolist())
    start = member.header_offset + 30 + len(member.filename)
    flipped(path, start + rng.randrange(member.file_size), rng)


def claims(key=None, **wrong):
    """An index, with right checksums, that is wrong about one tensor."""

    def damage(rng, path):
        entries = forged_index.read(path)
        # One that has dimensions.
        keys = [k for k, e in entries.items() if k and _dims(e)]
        chosen = key or rng.choice(keys)
        entry = forged_index.entry(entries, chosen)
        for field, value in wrong.items():
            if field == "dims":
                del entry.shape.dim[:]
                for size in value:
                    entry.shape.dim.add(size=size)
            else:
                setattr(entry, field, value)
        entries[chosen] = entry.SerializeToString()
        forged_index.write(path, entries)

    return damage


def _dims(entry):
    return tensor_bundle_pb2.BundleEntryProto.FromString(entry).shape.dim


def claims_shards(count):
    def damage(rng, path):
        entries = forged_index.read(path)
        header = tensor_bundle_pb2.BundleHeaderProto.FromString(entries[b""])
        header.num_shards = count
        entries[b""] = header.SerializeToString()
        forged_index.write(path, entries)

    return damage


def entries_changed(change):
    def damage(rng, path):
        entries = forged_index.read(path)
        change(entries)
        forged_index.write(path, entries)

    return damage


def graph_replaced(graph):
    """An object graph, with right checksums, that is none."""

    def damage(rng, path):
        reader = tf.train.load_checkpoint(path)
        tensors = {
            key: reader.get_tensor(key)
            for key in reader.get_variable_to_shape_map()
        }
        tensors["_CHECKPOINTABLE_OBJECT_GRAPH"] = tf.constant(graph)
        tf.raw_ops.SaveV2(
            prefix=path,
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=list(tensors.values()),
        )

    return damage


def graph_of_another():
    """A sound object graph, that names none of the tensors."""
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.nodes.add()
    return graph.SerializeToString()


def graph_alone(rng, path):
    """An empty object graph, and no tensor that it should name."""
    tf.raw_ops.SaveV2(
        prefix=path,
        tensor_names=["_CHECKPOINTABLE_OBJECT_GRAPH"],
        shape_and_slices=[""],
        tensors=[tf.constant(b"")],
    )


def graph_of_more(rng, path):
    """Its object graph names a variable that is not there."""
    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(
        tf.train.load_checkpoint(path).get_tensor(
            "_CHECKPOINTABLE_OBJECT_GRAPH"
        )
    )
    graph.nodes[0].children.add(node_id=len(graph.nodes), local_name="more")
    key = "more/.ATTRIBUTES/VARIABLE_VALUE"
    graph.nodes.add().attributes.add(name="VARIABLE_VALUE", checkpoint_key=key)
    graph_replaced(graph.SerializeToString())(rng, path)


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
    names = pathlib.Path(index_of(path)).read_bytes()
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


def one_place(rng, path):
    """Two tensors that are the same bytes."""
    runs = {}

    def note(name, item):
        if isinstance(item, h5py.Dataset) and item.id.get_offset():
            runs.setdefault(item.nbytes, []).append(item.id.get_offset())

    with h5py.File(path) as file:
        file.visititems(note)
    size, (first, second) = next(
        (n, starts[:2]) for n, starts in runs.items() if len(starts) > 1
    )
    content = pathlib.Path(path).read_bytes()
    old = struct.pack("<QQ", second, size)
    assert content.count(old) == 1
    content = content.replace(old, struct.pack("<QQ", first, size))
    pathlib.Path(path).write_bytes(content)


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
