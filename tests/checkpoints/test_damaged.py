"""Damaged inputs: each gives a clear error, and leaves nothing."""

import os
import pathlib
import random
import signal
import tracemalloc
import zipfile

import numpy as np
import pytest

import swa_tf
from tests import checkpoint_files, programs
from tests.checkpoint_files import (
    FORMS,
    H5,
    KERAS,
    NAME,
    OBJECT,
    WEIGHTS,
    command_line,
    contents,
)
from tests.damage import (
    PICKLE,
    PNG,
    TEXT,
    bomb,
    changed,
    claims,
    claims_shards,
    data_of,
    directory,
    entries_changed,
    external_link,
    external_storage,
    flipped,
    flipped_lzma,
    flipped_member,
    flipped_tensor,
    graph_alone,
    graph_of_another,
    graph_of_more,
    graph_replaced,
    graph_without_end,
    hard_link,
    hdf5,
    index_of,
    itself,
    missing,
    no_known_type,
    one_place,
    pipe,
    replaced_by,
    soft_link,
    symlink_loop,
    truncated,
    virtual,
    zipped,
)

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
    "data truncated": (truncated(data_of), "cannot be read"),
    "data truncated ": (truncated(data_of), "cannot be read"),
    "index truncated": (truncated(index_of), "index cannot be read"),
    "index truncated ": (truncated(index_of), "index cannot be read"),
    **{
        f"tensor flipped {i}": (
            flipped_tensor,
            "cannot be read.*([Cc]hecksum|less bytes|length|size)",
        )
        for i in range(16)
    },
    "data empty": (replaced_by(data_of, b""), "cannot be read"),
    "index empty": (replaced_by(index_of, b""), "too short"),
    "data a text": (replaced_by(data_of, TEXT), "cannot be read"),
    "index a text": (replaced_by(index_of, TEXT), "not an sstable"),
    "index a png": (replaced_by(index_of, PNG), "not an sstable"),
    "index a pickle": (replaced_by(index_of, PICKLE), "not an sstable"),
    "data missing": (missing(data_of), "data-00000-of-00001; No such file"),
    "index missing": (missing(index_of), "index is missing"),
    "data a directory": (directory(data_of), "no file"),
    "index a directory": (directory(index_of), "no file"),
    "data a loop": (symlink_loop(data_of), "symbolic links"),
    "index a loop": (symlink_loop(index_of), "symbolic links"),
    "data a pipe": (pipe(data_of), "no file"),
    "index a pipe": (pipe(index_of), "no file"),
    "huge offset": (claims(offset=1 << 62), "less bytes than requested"),
    "negative offset": (claims(offset=-1), "negative position"),
    "huge size": (claims(size=1 << 62), "Invalid size"),
    "negative size": (claims(size=-1), "Invalid size"),
    "huge shape": (claims(dims=[1 << 40, 1 << 20]), "same tensors|larger than"),
    "another type": (claims(dtype=7), "same tensors|cannot be read"),
    "string of huge size": (
        claims(dtype=7, size=1 << 60),
        "same tensors|cannot be read",
    ),
    "no type": (claims(dtype=0), "index cannot be read: 0"),
    "unknown type": (claims(dtype=99), "index cannot be read: 99"),
    "a resource": (claims(dtype=20), "same tensors|cannot be read"),
    "wrong shard": (claims(shard_id=3), "00003-of-00001; No such file"),
    "negative shard": (claims(shard_id=-1), "0001-of-00001; No such file"),
    "more shards": (claims_shards(2), "of-00002; No such file"),
    "many shards": (claims_shards((1 << 31) - 1), "No such file"),
    "no shards": (claims_shards(0), "No such file"),
    "name not in UTF-8": (
        entries_changed(lambda e: e.update({b"\xff\xfe": b""})),
        "index cannot be read",
    ),
    **DIFFERING,
}

ONE_FILE = {
    **{
        f"truncated {i}": (truncated(itself), "it is no whole")
        for i in range(8)
    },
    "empty": (replaced_by(itself, b""), "it is no whole"),
    "a text": (replaced_by(itself, TEXT), "it is no whole"),
    "a png": (replaced_by(itself, PNG), "it is no whole"),
    "a pickle": (replaced_by(itself, PICKLE), "it is no whole"),
    "missing": (missing(itself), "exist"),
    "a directory": (directory(itself), "directory"),
    "a loop": (symlink_loop(itself), "symbolic links"),
    "a pipe": (pipe(itself), "no file"),
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
            "same tensors|cannot be read",
        ),
        # TensorFlow then takes the graph for a header.
        "no header": (
            entries_changed(lambda e: e.pop(b"")),
            "same tensors|cannot be read",
        ),
        "graph empty": (graph_replaced(b""), "object graph.*no root"),
        "graph empty, without weights": (
            graph_alone,
            "object graph.*no root",
        ),
        "graph of more": (graph_of_more, "object graph.*'more/.*not there"),
        "graph of more ": (graph_of_more, "object graph.*'more/.*not there"),
        "graph of another": (
            graph_replaced(graph_of_another()),
            "object graph",
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
        "two in one place": (one_place, "lie in one place"),
        "a zip": (replaced_by(itself, b"PK\3\4" + bytes(9999)), "no whole"),
    },
    H5: {
        **ONE_FILE,
        "external storage": (hdf5(external_storage), "'out' lies in another"),
        "two in one place": (one_place, "lie in one place"),
        "a zip": (replaced_by(itself, b"PK\3\4" + bytes(9999)), "no whole"),
    },
    KERAS: {
        **ONE_FILE,
        **{
            f"member flipped {i}": (flipped_member, "checksum of .* is wrong")
            for i in range(12)
        },
        "an h5": (
            replaced_by(itself, b"\x89HDF\r\n\x1a\n" + bytes(9999)),
            "no whole zip",
        ),
        "no weights": (zipped(without="model.weights.h5"), "no item named"),
        "compressed": (zipped(method=zipfile.ZIP_DEFLATED), "is compressed"),
        "compressed by bzip2": (zipped(method=zipfile.ZIP_BZIP2), "compressed"),
        "encrypted": (zipped(flags=1), "no whole zip file.*encrypted"),
        "no whole lzma": (flipped_lzma, "no whole zip file"),
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
    assert message.replace("`inputs`", "--checkpoints") in shown.err
    assert "Traceback" not in shown.err
    assert "written" not in shown.out
    assert contents(tmp_path) == before


@pytest.mark.parametrize("form", FORMS)
def test_three_sound_inputs(form, three, tmp_path, capsys):
    """Sound inputs are averaged: the other tests here depend on it."""
    output = checkpoint_files.path_of(form, tmp_path / "new", "average")
    assert command_line(f"--output_path={output}", *three(form)) == 0
    assert all(map(os.path.isfile, checkpoint_files.files(form, output)))
    assert output in capsys.readouterr().out


def test_each_byte_of_an_index_flipped(tmp_path):
    """An error, or a bit that has no meaning and changes nothing."""
    rng = random.Random(0)
    paths = [os.fspath(tmp_path / f"ckpt-{i}") for i in range(2)]
    for i, path in enumerate(paths):
        checkpoint_files.write(NAME, path, {"w": np.float32(i)})
    index = pathlib.Path(index_of(paths[1]))
    sound, errors = index.read_bytes(), 0
    for at in range(len(sound)):
        flipped(index, at, rng)
        output = os.fspath(tmp_path / "average")
        try:
            swa_tf.average_checkpoints(paths, output)
        except ValueError as error:
            assert f"'{paths[1]}'" in str(error)  # noqa: PT017
            errors += 1
        else:
            found = checkpoint_files.read(NAME, output, {"w": np.float32(0)})
            assert found == {"w": 0.5}
            for file in (data_of(output), index_of(output), f"{output}.json"):
                os.unlink(file)
        index.write_bytes(sound)
        assert sorted(tmp_path.rglob("*")) == sorted(
            [
                index,
                *map(pathlib.Path, map(data_of, paths)),
                pathlib.Path(index_of(paths[0])),
            ]
        )
    assert errors > 0.5 * len(sound)


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


def test_a_large_member_beside_the_weights_takes_no_memory(three, tmp_path):
    paths, size = three(KERAS), 1 << 26
    with zipfile.ZipFile(paths[2], "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(size))
    output = os.fspath(tmp_path / "average.keras")
    tracemalloc.start()
    swa_tf.average_checkpoints(paths, output)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size / 4
    with zipfile.ZipFile(output) as file:
        assert file.testzip() is None
        assert file.read("zeros") == bytes(size)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "damage"),
    [(OBJECT, truncated(data_of)), (KERAS, flipped_member)],
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
    assert "\nerror: --checkpoints must be whole" in f"\n{done.stderr}"
    assert f"'{paths[1]}'" in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "forged", [{"dims": [-1]}, {"dims": [1 << 40, 1 << 40]}], ids=str
)
def test_a_forged_index_ends_the_process_and_writes_nothing(
    forged, three, tmp_path
):
    """TensorFlow aborts, as `SECURITY.md` says; no Python code can catch it."""
    paths = three(OBJECT)
    claims(**forged)(random.Random(0), paths[1])
    before = contents(tmp_path)
    output = checkpoint_files.path_of(OBJECT, tmp_path / "new", "average")
    done = programs.run_module(
        "swa_tf.average_checkpoints_main", f"--output_path={output}", *paths
    )
    assert done.returncode == -signal.SIGABRT
    assert contents(tmp_path) == before
