"""Splits: by content alone, so that adding records never moves old ones."""

import hashlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftlab.data.splits import SplitRecords, assign_split, evenly_spaced
from ftlab.errors import UserError


def _rows(size: int) -> list[dict]:
    return [{"prompt": f"prompt {place // 2}", "completion": str(place)} for place in range(size)]


@given(st.text(), st.floats(0, 0.5), st.floats(0, 0.49))
def test_the_split_follows_the_hash_alone(prompt: str, validation: float, test: float) -> None:
    digest = hashlib.blake2b(prompt.encode("utf-8"), digest_size=8).hexdigest()
    place = int(digest, 16) / 16**16
    expected = "validation" if place < validation else "test" if place >= 1 - test else "train"
    assert assign_split(prompt, validation, test) == expected


def test_shares_are_kept_to() -> None:
    splits = [assign_split(f"prompt {place}", 0.2, 0.1) for place in range(10_000)]
    assert splits.count("validation") == pytest.approx(2000, abs=160)  # four standard deviations
    assert splits.count("test") == pytest.approx(1000, abs=120)


@given(st.sets(st.text(max_size=5), min_size=1), st.sets(st.text(max_size=5)))
def test_changing_one_share_leaves_the_other_split_alone(prompts: set[str], more: set[str]) -> None:
    for prompt in prompts | more:
        assert (assign_split(prompt, 0.3, 0.1) == "test") == (assign_split(prompt, 0.1, 0.1) == "test")


@given(st.integers(0, 500), st.integers(1, 60))
def test_evenly_spaced_takes_every_nth_from_the_first(size: int, limit: int) -> None:
    chosen = evenly_spaced(range(size), limit)
    step = 1
    while len(range(0, size, step)) > limit:
        step += 1
    assert chosen == list(range(0, size, step))
    assert len(chosen) <= limit


def test_evenly_spaced_of_e2e() -> None:
    assert evenly_spaced(range(4672), 156) == list(range(0, 4672, 30))
    assert evenly_spaced(range(5), None) == [0, 1, 2, 3, 4]


def test_a_file_is_shared_out_and_adding_records_moves_none(write: Callable[..., str]) -> None:
    def split_of_each(size: int) -> dict[str, str]:
        splits = SplitRecords(write(f"{size}.jsonl", _rows(size)), None, None, 0.2, 0.2)
        assert all(splits.has(split) for split in ("train", "validation", "test"))
        return {
            record.references[0]: split for split in ("train", "validation", "test") for record in splits.records(split)
        }

    few, many = split_of_each(200), split_of_each(400)
    assert len(few) == 200
    assert len(many) == 400
    assert few.items() <= many.items()
    # rows 2k and 2k + 1 share a prompt
    assert all(many[str(place)] == many[str(place + 1)] for place in range(0, 400, 2))


def test_validation_is_carved_out_of_train_where_no_file_is_given(write: Callable[..., str], tmp_path) -> None:
    write("set/train.jsonl", _rows(200))
    splits = SplitRecords(str(tmp_path / "set"), None, None, 0.2, 0.2)
    train, validation = splits.records("train"), splits.records("validation")
    assert len(train) + len(validation) == 200
    assert all(assign_split(record.prompt, 0.2, 0) == "validation" for record in validation)
    assert not splits.has("test")
    with pytest.raises(UserError, match=r"has no test records; add a test file or raise data\.test_share"):
        splits.records("test")


def test_given_files_are_left_whole(write: Callable[..., str], tmp_path) -> None:
    for name, size in {"train": 100, "dev": 10, "test": 6}.items():
        write(f"set/{name}.jsonl", _rows(size))
    splits = SplitRecords(str(tmp_path / "set"), None, None, 0.2, 0.2)
    assert [len(splits.records(split)) for split in ("train", "validation", "test")] == [100, 10, 6]


def test_a_directory_without_train_has_no_train(write: Callable[..., str], tmp_path) -> None:
    write("set/test.jsonl", _rows(4))
    splits = SplitRecords(str(tmp_path / "set"), None, None, 0.2, 0.2)
    assert [splits.has(split) for split in ("train", "validation", "test")] == [False, False, True]
    with pytest.raises(UserError, match=r"has no train records; add a train file$"):
        splits.records("train")


def test_a_split_that_nothing_falls_into_is_refused(write: Callable[..., str]) -> None:
    path = write("one.jsonl", [{"prompt": "a", "completion": "b"}])
    splits = SplitRecords(path, None, None, 1e-9, 1e-9)
    with pytest.raises(
        UserError, match=r"none of the 1 records .* falls into validation; .*raise data\.validation_share"
    ):
        splits.records("validation")


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.0), (0.0, -0.1), (0.5, 0.5), (1.0, 0.0)])
def test_shares_that_leave_no_train_are_refused(write: Callable[..., str], validation: float, test: float) -> None:
    with pytest.raises(UserError, match="together they must stay below 1"):
        SplitRecords(write("a.jsonl", _rows(2)), None, None, validation, test)
