"""Checkpoints on the disk: whole or not there, the last whole one found, damage told from what is whole."""

import shutil
from pathlib import Path

import pytest

from ftlab.errors import UserError
from ftlab.runs import CheckpointFiles


@pytest.fixture
def files(tmp_path: Path) -> CheckpointFiles:
    return CheckpointFiles(tmp_path / "checkpoints")


def write(files: CheckpointFiles, kind: str, step: int, content: bytes | None = None) -> Path:
    return files.write(kind, step, lambda file: file.write(content or f"{kind} {step}".encode()))


def names(files: CheckpointFiles) -> set[str]:
    return {path.name.rsplit("-", 1)[0] for path in files.directory.iterdir()}


def test_a_link_names_the_newest(files: CheckpointFiles) -> None:
    for step in (1, 2):
        path = write(files, "last", step)
        assert files.last.read_bytes() == f"last {step}".encode()
        assert files.last.resolve() == path
    assert not files.best.exists()


def test_the_last_two_and_the_best_are_kept(files: CheckpointFiles) -> None:
    for step in (1, 2, 3, 4):
        write(files, "last", step)
        write(files, "best", step)
        files.keep(best=[2, 4])
    assert names(files) == {
        "last-00000003", "last-00000004", "best-00000002", "best-00000004", "last.ckpt", "best.ckpt",
    }  # fmt: skip


def test_a_write_that_fails_leaves_what_was_there(files: CheckpointFiles) -> None:
    before = write(files, "last", 1)

    def fail(file: object) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        files.write("last", 2, fail)
    assert {path.name for path in files.directory.iterdir()} == {before.name, "last.ckpt"}
    assert files.to_go_on_from() == (before, [])


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_where_the_last_is_damaged_the_one_before_is_taken(files: CheckpointFiles, damage: str) -> None:
    before, last = write(files, "last", 1), write(files, "last", 2)
    content = bytearray(last.read_bytes())
    if damage == "gone":
        last.unlink()
    elif damage == "cut":
        last.write_bytes(content[:-1])
    else:
        content[3] ^= 1
        last.write_bytes(content)
    assert files.to_go_on_from() == (before, [] if damage == "gone" else [last])


def test_a_killed_process_may_have_left_a_newer_one_without_its_link(files: CheckpointFiles) -> None:
    """The one that the link names was there whole with all that belongs to it: curves are written before."""
    named = write(files, "last", 5)
    files.write("last", 6, lambda file: file.write(b"x"), named=False)
    assert files.to_go_on_from() == (named, [])


def test_where_all_are_damaged_that_is_said(files: CheckpointFiles) -> None:
    for step in (1, 2):
        write(files, "last", step).write_bytes(b"")
    with pytest.raises(UserError, match="is damaged, and so is every other checkpoint"):
        files.to_go_on_from()


def test_a_damaged_best_is_not_judged(files: CheckpointFiles) -> None:
    write(files, "last", 2)
    write(files, "best", 1).write_bytes(b"other")
    with pytest.raises(UserError, match=r"best\.ckpt is damaged: the content of best-00000001-"):
        files.to_judge()


def test_too_full_a_disk_is_said_before(files: CheckpointFiles) -> None:
    files.check_room(10)
    with pytest.raises(UserError, match=r"no room for a checkpoint: it takes 1,000,000,000,000 MB, and [\d,]+ MB are"):
        files.check_room(10**18)


def test_links_may_have_been_copied_as_files(files: CheckpointFiles, tmp_path: Path) -> None:
    write(files, "last", 1)
    copy = CheckpointFiles(Path(shutil.copytree(files.directory, tmp_path / "copy")))
    assert not copy.last.is_symlink()
    assert copy.to_judge() == copy.last
    assert copy.to_go_on_from()[0] == next(copy.directory.glob("last-*"))
    copy.last.write_bytes(b"other")
    with pytest.raises(UserError, match="is damaged"):
        copy.to_judge()


def test_going_on_the_best_are_those_that_training_has_seen(files: CheckpointFiles) -> None:
    for step in (2, 4, 6):
        write(files, "best", step)
    files.go_on(5, [4, 2])
    assert files.best.resolve().name.startswith("best-00000004-")
    assert len(list(files.directory.glob("best-*"))) == 2
    files.go_on(1, [])
    assert not files.best.exists()


def test_damaged_ones_that_are_set_aside_push_out_no_whole_one(files: CheckpointFiles) -> None:
    write(files, "last", 5)
    write(files, "last", 10).write_bytes(b"torn")
    whole, damaged = files.to_go_on_from()
    files.set_aside(damaged)
    write(files, "last", 8)
    files.keep([])
    assert whole is not None
    assert whole.is_file()
    assert [path.name[:21] for path in sorted(files.directory.glob("damaged-*"))] == ["damaged-last-00000010"]
