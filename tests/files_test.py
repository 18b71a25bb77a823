"""Test that files and folders are replaced atomically."""

import errno

import pytest

from vlbert_jax.files import atomic_write, disk_full


def write(path, content):
    """Write a file, or a folder with one file for a dict."""
    if isinstance(content, dict):
        path.mkdir()
        for name, text in content.items():
            (path / name).write_text(text)
    else:
        path.write_text(content)


def read(path):
    """Return the content of a file, or a dict with the contents of the files in a folder."""
    return {file.name: file.read_text() for file in path.iterdir()} if path.is_dir() else path.read_text()


@pytest.mark.parametrize("new", ["new", {"a": "new"}])
@pytest.mark.parametrize("old", [None, "old", {"a": "old", "b": "old"}])
def test_the_target_is_replaced_atomically(tmp_path, old, new):
    target = tmp_path / "folder" / "target"
    if old is not None:
        target.parent.mkdir()
        write(target, old)
    with atomic_write(target) as partial:
        write(partial, new)
        assert (read(target) if target.exists() else None) == old
    assert read(target) == new
    assert [path.name for path in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("content", ["half", {"a": "half"}])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(tmp_path, content, error):
    target = tmp_path / "target"
    write(target, "old")
    with pytest.raises(error), atomic_write(target) as partial:
        write(partial, content)
        raise error
    assert read(target) == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("left", ["half", {"a": "half", "b": "half"}])
def test_a_partial_file_of_a_killed_process_is_removed(tmp_path, left):
    target = tmp_path / "target"
    with atomic_write(target) as partial:
        partial.write_text("first")
    write(partial, left)  # as a killed process leaves it
    with atomic_write(target) as partial:
        write(partial, {"a": "new"})
    assert read(target) == {"a": "new"}
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_points_to_the_replaced_file(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with atomic_write(tmp_path / "link") as partial:
        partial.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_an_error_without_a_path_gets_the_target(tmp_path):
    with pytest.raises(OSError, match="target") as caught, atomic_write(tmp_path / "target"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_reported_and_the_incomplete_checkpoint_removed(tmp_path):
    (tmp_path / "10").mkdir()
    (tmp_path / "20.orbax-checkpoint-tmp").mkdir()
    with pytest.raises(OSError, match=r"no space left.*run the same command again"), disk_full(tmp_path):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["10"]
    with pytest.raises(ValueError, match="other"), disk_full(tmp_path):
        raise ValueError("other")
