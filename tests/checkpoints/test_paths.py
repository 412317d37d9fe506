"""The files of a checkpoint, the newest one, and places for a result."""

import errno
import os
import pathlib
import shutil

import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import swa_tf
from swa_tf.checkpoints import paths as paths_lib
from swa_tf.support import atomic_files

DATA = ".data-00000-of-00001"
NAMES = st.sampled_from(["ckpt-", "epoch_", "a.b-", "v", "model.ckpt-", ""])
TAILS = st.sampled_from(["", "-loss_0.75", "-1.5e-05", "_acc0.9.1", "-last"])
SUFFIXES = st.sampled_from(["", *paths_lib.SUFFIXES])


def _touch(folder, *names, time=None):
    """Makes empty files, last written at `time`."""
    for name in names:
        path = pathlib.Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        if time is not None:
            os.utime(path, (time, time))


def _bundle(*names):
    return [name + part for name in names for part in (DATA, ".index")]


def _found(folder):
    return [
        os.path.basename(path) for path in paths_lib.in_directory(str(folder))
    ]


@pytest.mark.parametrize(
    ("path", "suffix"),
    [
        ("run/a.weights.h5", ".weights.h5"),
        ("run/a.h5", ".h5"),
        ("run/a.weights.json", ".weights.json"),
        ("run/a.json", ""),
        ("run/a.hdf5", ".hdf5"),
        ("run/a.keras", ".keras"),
        ("run.keras/ckpt-1", ""),
        ("run/a.ckpt", ""),
        ("a.keras.index", ""),
    ],
)
def test_suffix(path, suffix):
    assert paths_lib.suffix(path) == suffix


def test_files_of_a_prefix(tmp_path):
    shards = [f"a[1].data-0000{i}-of-00002" for i in (0, 1)]
    _touch(
        tmp_path, *shards, "a[1].index", "a1.index", f"a[1]0{DATA}", "a[1].x"
    )
    found = paths_lib.files(str(tmp_path / "a[1]"))
    assert [os.path.basename(path) for path in found] == [*shards, "a[1].index"]
    assert paths_lib.files(str(tmp_path / "b")) == []


def test_files_of_one_file(tmp_path):
    _touch(tmp_path, "v1", "a.keras", "a.keras.index")
    for name in ("v1", "a.keras"):
        path = str(tmp_path / name)
        assert paths_lib.files(path) == [path]


def test_files_of_shards(tmp_path):
    shards = [f"a[1]_0000{i}.weights.h5" for i in (0, 1)]
    others = ["a1_00000.weights.h5", "a[1]_0.weights.h5", "a[1].weights.h5"]
    _touch(tmp_path, "a[1].weights.json", *shards, *others)
    found = paths_lib.files(str(tmp_path / "a[1].weights.json"))
    names = [os.path.basename(path) for path in found]
    assert names == [*shards, "a[1].weights.json"]


def test_a_report_is_no_list_of_shards(tmp_path):
    """`average_checkpoints` writes it beside a checkpoint `a.weights`."""
    _touch(tmp_path, *_bundle("a.weights"), "a.weights.json")
    assert _found(tmp_path) == ["a.weights"]


@given(
    numbers=st.lists(st.integers(0, 10**20), min_size=1, unique=True),
    padded=st.booleans(),
    name=NAMES,
    tail=TAILS,
    suffix=SUFFIXES,
)
def test_order_of_numbers(numbers, padded, name, tail, suffix):
    width = 22 if padded else 0
    paths = {
        number: f"run_99/{name}{number:0{width}d}{tail}{suffix}"
        for number in numbers
    }
    assert paths_lib.in_order([paths[n] for n in numbers]) == [
        paths[n] for n in sorted(numbers)
    ]


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        (["ckpt-10", "ckpt-2"], ["ckpt-2", "ckpt-10"]),
        (
            ["epoch_10-loss_0.5.keras", "epoch_03-loss_0.75.keras"],
            ["epoch_03-loss_0.75.keras", "epoch_10-loss_0.5.keras"],
        ),
        # The last whole number, not the first.
        (["fold2-step1", "fold1-step2"], ["fold2-step1", "fold1-step2"]),
        (["b/ckpt-1", "a/ckpt-2"], ["b/ckpt-1", "a/ckpt-2"]),
        (["best-3", "ckpt-1", "x2y"], ["ckpt-1", "x2y", "best-3"]),
        (["weights.01-1e-05.h5", "weights.02-1e-06.h5"],) * 2,
        (["cp.10.0.25.h5", "cp.09.0.75.h5"],) * 2,  # no whole number: by time
    ],
)
def test_order_of_names(given, ordered):
    assert paths_lib.in_order(given) == ordered


@pytest.mark.parametrize(
    "names",
    [
        ["b/ckpt-7", "a/ckpt-7"],  # of equal numbers
        ["ckpt-9", "last", "ckpt-8"],  # not all with one
        ["run_2/first", "run_1/second"],  # a folder's does not count
        ["ckpt-08", "ckpt-8"],
        ["model.ckpt-0.5", "model.ckpt-0.25"],
    ],
)
@pytest.mark.parametrize("suffix", ["", ".weights.h5"])
def test_order_by_time(names, suffix, tmp_path):
    paths = [str(tmp_path / (name + suffix)) for name in names]
    for i, path in enumerate(paths):
        files = [path] if suffix else _bundle(path)
        _touch(tmp_path, *files, time=1_000 - i)
    assert paths_lib.in_order(paths) == paths[::-1]
    assert paths_lib.in_order(paths[::-1]) == paths[::-1]


def test_order_by_time_is_exact_and_of_the_last_file(tmp_path):
    _touch(tmp_path, *_bundle("a", "b", "c"), time=1)
    os.utime(tmp_path / f"a{DATA}", ns=(3, 3 * 10**17 + 3))
    os.utime(tmp_path / "b.index", ns=(3, 3 * 10**17 + 2))
    paths = [str(tmp_path / name) for name in "abc"]
    assert paths_lib.in_order(paths) == [paths[2], paths[1], paths[0]]


def test_order_of_equal_times_is_as_given(tmp_path):
    _touch(tmp_path, *_bundle("a", "b", "c"), time=1)
    paths = [str(tmp_path / name) for name in "bca"]
    assert paths_lib.in_order(paths) == paths


def test_a_link_is_as_old_as_what_it_leads_to(tmp_path):
    _touch(tmp_path, "old.keras", time=1)
    _touch(tmp_path, "new.keras", time=2)
    (tmp_path / "link.keras").symlink_to("old.keras")
    paths = [str(tmp_path / f"{name}.keras") for name in ("new", "link")]
    assert paths_lib.in_order(paths) == paths[::-1]


def test_what_a_shell_makes_of_a_pattern(tmp_path):
    names = [*_bundle("ckpt-1", "ckpt-2"), "ckpt-1.meta", "ckpt-2.meta"]
    names += ["ckpt-1.data-00001-of-00002"]
    assert paths_lib.resolved(names) == ["ckpt-1", "ckpt-2"]
    assert paths_lib.resolved(["ckpt-2.index", "ckpt-1"]) == [
        "ckpt-2",
        "ckpt-1",
    ]


def test_paths_may_be_of_any_kind_of_iterable():
    names = ["a", "b.h5"]
    assert paths_lib.resolved(pathlib.Path(name) for name in names) == names


@pytest.mark.parametrize(
    ("inputs", "twice"),
    [
        (["a", "b", "a"], "a"),
        (["a.index", "a.index"], "a.index"),
        (["a", "x/../a"], "x/../a"),
        (["a", "./a.index"], "./a"),
        (["real", "link"], "link"),
        (["folder/ckpt-1", "linked_folder/ckpt-1"], "linked_folder/ckpt-1"),
        (["a.keras", pathlib.Path("link.keras")], "link.keras"),
    ],
)
def test_a_checkpoint_named_twice(inputs, twice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _touch(tmp_path, "a.keras", *_bundle("a", "b", "real", "folder/ckpt-1"))
    os.symlink("folder", "linked_folder")
    os.symlink("a.keras", "link.keras")
    for part in _bundle(""):
        os.symlink(f"real{part}", f"link{part}")
    with pytest.raises(ValueError, match="once") as error:
        paths_lib.resolved(inputs)
    assert str(error.value).endswith(f"Received twice: '{twice}'")


def test_a_path_like_a_pattern_where_no_links_can_be(tmp_path, monkeypatch):
    """As on Windows, where each path looks like one."""

    def refuses(*args):
        raise OSError(errno.EPERM, "no privilege")

    path = tf.train.Checkpoint(w=tf.Variable(1.0)).write(str(tmp_path / "a"))
    (tmp_path / "[b]").mkdir()
    for part in _bundle(""):
        shutil.copy(f"{path}{part}", tmp_path / "[b]" / f"c{part}")
    monkeypatch.setattr(os, "symlink", refuses)
    named = str(tmp_path / "[b]" / "c")
    with pytest.raises(ValueError, match="`inputs` must be whole") as error:
        swa_tf.average_checkpoints([named], tmp_path / "out")
    assert f"Received: '{named}': " in str(error.value)
    assert str(error.value).endswith("no privilege")


@pytest.mark.parametrize("inputs", [[], iter(())])
def test_no_inputs(inputs):
    with pytest.raises(ValueError, match=r"at least one.* Received: none"):
        paths_lib.resolved(inputs)


@pytest.mark.parametrize(
    ("inputs", "received"),
    [
        (3, "3"),
        (None, "None"),
        (["a", 3], "3 in it"),
        ([b"a"], "b'a' in it"),
    ],
)
def test_inputs_that_are_no_list_of_paths(inputs, received):
    with pytest.raises(TypeError, match="`inputs` must be a list") as error:
        paths_lib.resolved(inputs)
    assert received in str(error.value).split("Received: ")[1]


@pytest.mark.parametrize("inputs", ["missing", pathlib.Path("missing")])
def test_a_directory_that_does_not_exist(inputs):
    match = "`inputs` must be a list of paths, or a directory .*missing"
    with pytest.raises(FileNotFoundError, match=match):
        paths_lib.resolved(inputs)


@pytest.mark.parametrize("suffix", ["", *paths_lib.SUFFIXES])
def test_directory(suffix, tmp_path):
    names = [f"ckpt-{i}{suffix}" for i in (1, 2, 10)]
    _touch(tmp_path, *(names if suffix else _bundle(*names)))
    assert _found(tmp_path) == names
    assert paths_lib.resolved(tmp_path) == paths_lib.resolved(str(tmp_path))
    assert paths_lib.resolved(f"{tmp_path}/") == [
        str(tmp_path / n) for n in names
    ]


def test_directory_without_numbers_is_in_the_order_of_time(tmp_path):
    for time, name in enumerate(["c.keras", "a.keras", "b.keras"]):
        _touch(tmp_path, name, time=time)
    assert _found(tmp_path) == ["c.keras", "a.keras", "b.keras"]


def test_a_directory_of_the_first_version_of_saver(tmp_path):
    """One file each, which only the file `checkpoint` tells."""
    names = ["model-2", "model-10"]
    _touch(tmp_path, *names, "notes-1")
    tf.compat.v1.train.update_checkpoint_state(str(tmp_path), names[1], names)
    assert _found(tmp_path) == names


def test_directory_with_one_beside_numbered_ones(tmp_path):
    """It is one of them again, most often, and is of no known age."""
    _touch(tmp_path, "epoch_01.weights.h5", "epoch_02.weights.h5")
    assert len(_found(tmp_path)) == 2
    _touch(tmp_path, "best.weights.h5")
    with pytest.raises(ValueError, match="numbers in their names") as error:
        paths_lib.resolved(tmp_path)
    assert str(error.value).endswith("with best.weights.h5")


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (["epoch_01-loss_30", "epoch_02-loss_12"], True),
        (["epoch_01-loss_12", "epoch_02-loss_30"], False),
        (["resnet50-epoch_2", "resnet50-epoch_1"], False),  # as copies may be
        (["loss_30-epoch_01", "loss_12-epoch_02"], False),
    ],
)
def test_numbers_that_contradict_the_times(names, warned, tmp_path, recwarn):
    names = [f"{name}.keras" for name in names]
    for time, name in enumerate(names):
        _touch(tmp_path, name, time=time)
    assert len(_found(tmp_path)) == 2
    assert bool(recwarn.list) == warned
    if warned:
        message = str(recwarn[0].message)
        assert "epoch_02-loss_12.keras' to " in message
        assert "last whole number" in message


def test_directory_with_other_files(tmp_path):
    _touch(tmp_path, *_bundle("ckpt-1"))
    _touch(
        tmp_path,
        *_bundle(".ckpt-2", ".ckpt-3-x8f2/ckpt-3", "below/ckpt-4"),
        ".ckpt-5.keras",
        f"ckpt-6{DATA}.tempstate123",
        "ckpt-7_temp/part-00000-of-00001",
        "ckpt-1.meta",
        "graph.meta",
        "events.out.tfevents.8",
        "notes.txt",
        "history.json",
    )
    assert _found(tmp_path) == ["ckpt-1"]


@pytest.mark.parametrize(
    ("names", "forms"),
    [
        ([], "no checkpoint"),
        (["notes.txt", ".ckpt-1.index"], "no checkpoint"),
        (["a.h5", "a.weights.h5"], "*.h5, *.weights.h5"),
        (["a.keras", *_bundle("ckpt-1")], "*, *.keras"),
    ],
)
def test_directory_with_no_form_or_several(names, forms, tmp_path):
    _touch(tmp_path, *names)
    with pytest.raises(ValueError, match="one form") as error:
        paths_lib.resolved(tmp_path)
    assert str(error.value).endswith(f"with {forms}")


@pytest.mark.parametrize("directory", [3, None, b"run"])
def test_directory_that_is_no_path(directory):
    with pytest.raises(TypeError, match="`directory` must be a path"):
        swa_tf.checkpoints_in(directory)


def test_directory_that_is_none(tmp_path):
    _touch(tmp_path, "file")
    for path in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(FileNotFoundError, match=f"directory='{path}'"):
            paths_lib.in_directory(str(path))


@pytest.mark.parametrize("absolute", [True, False])
def test_directory_without_what_its_state_lists(absolute, tmp_path):
    _touch(tmp_path, *_bundle("ckpt-1", "ckpt-2"))
    folder = f"{tmp_path}/" if absolute else ""
    listed = [f"{folder}ckpt-{i}" for i in (1, 3, 4)]
    tf.compat.v1.train.update_checkpoint_state(
        str(tmp_path), listed[-1], listed
    )
    with pytest.raises(ValueError, match=r"without ckpt-3, ckpt-4$"):
        paths_lib.in_directory(str(tmp_path))
    _touch(tmp_path, *_bundle("ckpt-3", "ckpt-4"))
    assert _found(tmp_path) == [f"ckpt-{i}" for i in (1, 2, 3, 4)]


def test_directory_whose_state_cannot_be_read(tmp_path):
    _touch(tmp_path, *_bundle("ckpt-1"))
    for text in ("", "no such thing", "\xff"):
        (tmp_path / "checkpoint").write_text(text, encoding="latin-1")
        assert _found(tmp_path) == ["ckpt-1"]


def test_directory_whose_state_is_a_pipe(tmp_path):
    """It is not opened: a read would wait for somebody who writes."""
    _touch(tmp_path, *_bundle("ckpt-1"))
    os.mkfifo(tmp_path / "checkpoint")
    assert _found(tmp_path) == ["ckpt-1"]


def test_directory_with_a_name_that_is_not_utf_8(tmp_path):
    _touch(tmp_path, *_bundle("ckpt-1", "ckpt-2"))
    pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")).touch()
    assert _found(tmp_path) == ["ckpt-1", "ckpt-2"]
    assert len(atomic_files.names_in(str(tmp_path))) == 5


def test_directory_with_one_checkpoint_under_two_names(tmp_path):
    _touch(tmp_path, "epoch_1.keras", "epoch_2.keras")
    (tmp_path / "epoch_3.keras").symlink_to("epoch_2.keras")
    with pytest.raises(
        ValueError, match=r"Received twice: '.*/epoch_3\.keras'"
    ):
        paths_lib.in_directory(str(tmp_path))


@pytest.mark.parametrize("suffix", ["", ".weights.h5"])
def test_directory_with_an_average_among_checkpoints(suffix, tmp_path):
    names = [f"average{suffix}", f"ckpt-1{suffix}"]
    _touch(tmp_path, *(names if suffix else _bundle(*names)))
    _touch(tmp_path, f"average{suffix}.json")
    with pytest.raises(ValueError, match=f"averages .*with average{suffix}$"):
        paths_lib.in_directory(str(tmp_path))
    _touch(tmp_path, f"ckpt-1{suffix}.json")  # averages alone may be averaged
    assert sorted(_found(tmp_path)) == names


@pytest.mark.parametrize("suffix", ["", *paths_lib.SUFFIXES])
def test_output(suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inputs = [f"ckpt-1{suffix}"]
    for name in ("ckpt-2", "a/b/x.y", "./run.h5/x"):
        output = name + suffix
        assert paths_lib.checked_output(output, inputs) == output
    path = pathlib.Path(f"ckpt-2{suffix}")
    assert paths_lib.checked_output(path, inputs) == f"ckpt-2{suffix}"


@pytest.mark.parametrize(
    ("output", "like", "ending"),
    [
        ("x", "a.keras", ".keras"),
        ("x.h5", "a.keras", ".keras"),
        ("x.h5", "a.weights.h5", ".weights.h5"),
        ("x.weights.h5", "a.h5", ".h5"),
        ("x.hdf5", "a.h5", ".h5"),
        ("x.keras", "ckpt-1", "a name without suffix"),
        ("x.index", "ckpt-1", "a name without suffix"),
        (f"x{DATA}", "ckpt-1", "a name without suffix"),
        ("folder/", "ckpt-1", "a name without suffix"),
    ],
)
def test_output_of_a_wrong_name(output, like, ending):
    with pytest.raises(ValueError, match="`output` must end in") as error:
        paths_lib.checked_output(output, [like])
    assert f"must end in {ending}, as" in str(error.value)
    assert f"output='{output}'" in str(error.value)


@pytest.mark.parametrize("output", ["", "missing/.", "missing/.."])
def test_output_of_no_name(output):
    with pytest.raises(ValueError, match="`output` must be a path that ends"):
        paths_lib.checked_output(output, ["ckpt-1"])


@pytest.mark.parametrize("output", [None, 3, b"x"])
def test_output_that_is_no_path(output):
    with pytest.raises(TypeError, match="`output` must be a path"):
        paths_lib.checked_output(output, ["a"])


@pytest.mark.parametrize(
    ("output", "like", "there"),
    [
        ("x.keras", "a.keras", "x.keras"),
        ("x.keras", "a.keras", "x.keras.json"),
        ("x", "a", "x.index"),
        ("x", "a", f"x{DATA}"),
        ("x", "a", "x.data-00001-of-00002"),
        ("x", "a", "x.json"),
        ("x", "a", "x"),
    ],
)
@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_output_that_exists(output, like, there, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if kind == "file":
        _touch(tmp_path, there)
    elif kind == "folder":
        os.mkdir(there)
    else:
        os.symlink("nowhere", there)
    with pytest.raises(FileExistsError, match=f"there is '{there}'$"):
        paths_lib.checked_output(output, [like])


def test_output_that_is_an_input(tmp_path):
    _touch(tmp_path, "a.keras", "b.keras", *_bundle("ckpt-1"))
    (tmp_path / "link.keras").symlink_to("b.keras")
    for part in _bundle(""):
        (tmp_path / f"link{part}").symlink_to(f"ckpt-1{part}")
    keras = [str(tmp_path / "a.keras"), str(tmp_path / "b.keras")]
    prefix = [str(tmp_path / "ckpt-1")]
    for output, inputs in [
        ("b.keras", keras),
        ("link.keras", keras),
        ("ckpt-1", prefix),
        ("link", prefix),
    ]:
        with pytest.raises(FileExistsError, match="must not exist"):
            paths_lib.checked_output(tmp_path / output, inputs)


@pytest.mark.parametrize("output", ["file/x", "file/folder/x"])
def test_output_below_a_file(output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _touch(tmp_path, "file")
    with pytest.raises(ValueError, match="'file' is a file"):
        paths_lib.checked_output(output, ["a"])
