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


def write_parts(files: CheckpointFiles, step: int, numbers: tuple[int, ...] = (0, 1), content: str = "") -> None:
    for number in numbers:
        files.write_part("last", step, number, 2, lambda file: file.write(f"{content} {step}".encode()))


def parts(files: CheckpointFiles) -> set[str]:
    return {path.name.split("-")[1] for path in files.directory.glob("*.part")}


def test_parts_go_with_their_checkpoint(files: CheckpointFiles) -> None:
    for step in (1, 2, 3):
        write_parts(files, step)
        files.write("last", step, lambda file: file.write(b"all else"), parts=2)
        write_parts(files, step + 1, (1,))  # another process is ahead
        files.keep(best=[])
        assert parts(files) == {f"{number:08d}" for number in range(max(1, step - 1), step + 2)}
    with pytest.raises(UserError, match="part 0 of 2 of the checkpoint last of step 4 is not in"):
        files.parts("last", 4, 2)


def test_a_checkpoint_that_lacks_a_part_or_has_a_torn_one_is_damaged(files: CheckpointFiles) -> None:
    paths = []
    for step in (1, 2, 3):
        write_parts(files, step)
        paths.append(files.write("last", step, lambda file: file.write(b"all else"), parts=2))
    files.parts("last", 3, 2)[1].write_bytes(b"")
    files.parts("last", 2, 2)[0].unlink()
    assert files.to_go_on_from() == (paths[0], [paths[2], paths[1]])


def test_a_part_replaces_that_of_a_training_that_was_cut_short(files: CheckpointFiles) -> None:
    write_parts(files, 5, (1,), "stale")
    write_parts(files, 5, content="new")
    assert [path.read_text() for path in files.parts("last", 5, 2)] == ["new 5", "new 5"]
