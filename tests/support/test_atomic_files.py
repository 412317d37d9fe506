"""Files and folders that are replaced whole or not at all."""

import os

import pytest

from swa_tf.support import atomic_files


@pytest.mark.parametrize("existing", [True, False])
def test_file(existing, tmp_path):
    path = tmp_path / "folder" / "model.weights.h5"
    if existing:
        path.parent.mkdir()
        path.write_text("old")
    with atomic_files.replaced(path) as new:
        assert new.name == path.name
        new.write_text("new")
        assert path.exists() == existing
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("existing", [True, False])
def test_folder(existing, tmp_path):
    path = tmp_path / "model"
    if existing:
        path.mkdir()
        (path / "old").write_text("old")
    with atomic_files.replaced(path) as new:
        new.mkdir()
        (new / "new").write_text("new")
    assert [p.name for p in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(error, tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("old")
    with pytest.raises(error):
        with atomic_files.replaced(path) as new:
            new.write_text("half")
            raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("linked", [False, True])
def test_an_interrupt_between_the_renames_of_a_folder(
    linked, tmp_path, monkeypatch
):
    path = tmp_path / "model"
    folder = tmp_path / "linked" if linked else path
    folder.mkdir()
    (folder / "old").write_text("old")
    if linked:
        path.symlink_to("linked")  # relative, so it leads nowhere elsewhere
    before = sorted(tmp_path.iterdir())

    def interrupted(source, target):
        assert not path.exists()  # the first rename is done
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        with atomic_files.replaced(path) as new:
            new.mkdir()
            (new / "new").write_text("new")
    assert [p.name for p in path.iterdir()] == ["old"]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_scratch_folder(error, tmp_path):
    path = tmp_path / "folder" / "model"
    try:
        with atomic_files.scratch_folder(str(path)) as scratch:
            assert list(path.parent.iterdir()) == [scratch]
            assert scratch.name.startswith(".model-")
            (scratch / "more").mkdir()
            (scratch / "more" / "file").write_text("")
            if error:
                raise error
    except KeyboardInterrupt:
        assert error
    # A folder that was made for nothing is gone as well.
    left = list(tmp_path.rglob("*"))
    assert left == ([] if error else [path.parent])


def test_a_folder_does_not_replace_a_file(tmp_path):
    path = tmp_path / "model"
    path.write_text("old")
    with pytest.raises(OSError, match="model"):
        with atomic_files.replaced(path) as new:
            new.mkdir()
    assert path.read_text() == "old"


def test_a_folder_is_not_moved_onto_another(tmp_path):
    scratch, there = tmp_path / "scratch" / "model", tmp_path / "model"
    for folder in (scratch, there):
        folder.mkdir(parents=True)
        (folder / "file").write_text(folder.parent.name)
    with pytest.raises(FileExistsError, match="model' exists"):
        atomic_files.move([scratch], str(tmp_path))
    assert (there / "file").read_text() == tmp_path.name
