"""Splits: by content alone, so that adding records never moves old ones; numbers and strata by rank."""

import hashlib
import pickle
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ftlab.data.assignment import Splits, evenly_spaced
from ftlab.data.records import SPLITS, Message, Record, Split, pair
from ftlab.errors import UserError

TRAIN: set[Split] = {"train"}
KEYS = st.lists(st.integers(0, 2**64 - 1), min_size=4, max_size=60)


def _assign(
    splits: Splits,
    keys: list[int],
    strata: list[int] | None = None,
    pooled: bool = True,
    given: Iterable[Split] = ("train",),
) -> list[str]:
    even = None if strata is None else numpy.array(strata, dtype=int)
    numbers = splits.assign(numpy.array(keys, dtype=numpy.uint64), even, pooled, set(given))
    assert numbers.dtype == numpy.int8
    return [SPLITS[number] for number in numbers]


def _keys(count: int) -> list[int]:
    return [Splits().key(pair(f"prompt {place}", ("x",), "a")) for place in range(count)]


@given(st.text(), st.floats(0, 0.5), st.floats(0, 0.49))
def test_the_split_follows_the_hash_alone(prompt: str, validation: float, test: float) -> None:
    place = int(hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest(), 16) / 16**16
    expected = "validation" if place < validation else "test" if place >= 1 - test else "train"
    splits = Splits(validation, test)
    assert _assign(splits, [splits.key(pair(prompt, ("x",), "a"))]) == [expected]


@given(KEYS, st.floats(0, 0.5), st.floats(0, 0.49))
def test_places_are_the_same_as_python_divides(keys: list[int], validation: float, test: float) -> None:
    expected = [
        "validation" if key / 2**64 < validation else "test" if test and key / 2**64 >= 1 - test else "train"
        for key in keys
    ]
    assert _assign(Splits(validation, test), keys) == expected


def test_keys() -> None:
    def hashed(text: str) -> int:
        return int(hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), 16)

    splits, record = Splits(), pair("ask", ("say",), "a:1")
    assert splits.key(record) == splits.key(pair("ask", ("other",), "b:2")) == hashed("ask")
    assert splits.key(replace(record, group="g")) == hashed("g")
    assert splits.key(Record((), (Message("text", "Once"),), "a:1")) == hashed("Once")
    assert splits.key(Record((), (), "a:1", tokens=(1, 23))) == hashed("1 23")
    assert splits.key(pair("\ud800", ("x",), "a")) >= 0


def test_shares_are_kept_to() -> None:
    found = Counter(_assign(Splits(0.2, 0.1), _keys(10_000)))
    assert found["validation"] == pytest.approx(2000, abs=160)  # four standard deviations
    assert found["test"] == pytest.approx(1000, abs=120)


@given(KEYS, KEYS)
def test_adding_records_never_moves_old_ones(few: list[int], more: list[int]) -> None:
    splits = Splits(0.3, 0.2)
    assert _assign(splits, few + more)[: len(few)] == _assign(splits, few)


@given(KEYS)
def test_changing_one_share_leaves_the_other_split_alone(keys: list[int]) -> None:
    one, other = _assign(Splits(0.3, 0.1), keys), _assign(Splits(0.1, 0.1), keys)
    assert [split == "test" for split in one] == [split == "test" for split in other]


@given(st.lists(st.integers(0, 2**64 - 1), unique=True, min_size=6, max_size=40), st.integers(0, 2), st.integers(0, 3))
def test_numbers_take_the_lowest_and_the_highest(keys: list[int], validation: int, test: int) -> None:
    found = _assign(Splits(validation, test), keys)
    ranked = [split for _, split in sorted(zip(keys, found, strict=True))]
    assert ranked == ["validation"] * validation + ["train"] * (len(keys) - validation - test) + ["test"] * test


def test_whole_groups_come_nearest_to_a_number() -> None:
    keys = [1, 1, 1, 2, 3, 8, 8, 9, 9, 9]
    assert _assign(Splits(3, 0), keys).count("validation") == 3
    assert _assign(Splits(2, 0), keys).count("validation") == 3  # as 0 is further away
    assert _assign(Splits(0, 4), keys).count("test") == 3  # as near as 5, and the fewer
    assert _assign(Splits(0, 5), keys).count("test") == 5


def test_a_share_beside_a_number() -> None:
    keys = _keys(1000)
    found, shares = _assign(Splits(0.1, 25), keys), _assign(Splits(0.1, 0.1), keys)
    assert found.count("test") == 25
    assert [split == "validation" for split in found] == [split == "validation" for split in shares]


AMOUNTS = st.one_of(st.integers(0, 3), st.floats(0, 0.45))


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=8, max_size=60),
    AMOUNTS,
    AMOUNTS,
    st.booleans(),
)
def test_groups_are_never_parted(records: list[tuple[int, int]], validation: float, test: float, even: bool) -> None:
    keys = [group * 2**58 for group, _ in records]
    try:
        found = _assign(Splits(validation, test), keys, [stratum for _, stratum in records] if even else None)
    except UserError:
        assume(False)
    assert len(set(zip(keys, found, strict=True))) == len(set(keys))


@given(st.lists(st.integers(0, 4), min_size=6, max_size=80), st.floats(0, 0.4), st.floats(0, 0.4))
def test_strata_get_their_part_within_one(strata: list[int], validation: float, test: float) -> None:
    found = _assign(Splits(validation, test), _keys(len(strata)), strata)
    for name, share in (("validation", validation), ("test", test)):
        assert found.count(name) == round(share * len(strata))
        of_split = Counter(stratum for stratum, split in zip(strata, found, strict=True) if split == name)
        for stratum, size in Counter(strata).items():
            # of the rounded total: the exact part of it
            assert abs(of_split[stratum] - found.count(name) * size / len(strata)) < 1


@given(st.lists(st.integers(0, 4), min_size=4, max_size=40), st.permutations(range(5)))
@settings(max_examples=30)
def test_how_strata_are_numbered_does_not_matter(strata: list[int], names: list[int]) -> None:
    splits, keys = Splits(0.25, 0.25), _keys(len(strata))
    assert _assign(splits, keys, strata) == _assign(splits, keys, [names[stratum] for stratum in strata])


def test_many_small_strata_still_make_a_split() -> None:
    strata = [place // 3 for place in range(300)]
    found = _assign(Splits(0.1, 10), _keys(300), strata)
    assert Counter(found) == {"train": 260, "validation": 30, "test": 10}
    assert max(Counter(s for s, split in zip(strata, found, strict=True) if split == "validation").values()) == 1


def test_given_files_are_left_whole() -> None:
    keys = _keys(200)
    assert set(_assign(Splits(0.2, 0.2), keys, pooled=False, given={"train", "validation"})) == {"train"}
    assert set(_assign(Splits(0.2, 20), keys, pooled=False, given={"train"})) == {"train", "validation"}
    assert set(_assign(Splits(0.2, 0.2), keys, pooled=False, given={"train", "test"})) == {"train", "validation"}


def test_available_splits() -> None:
    splits = Splits(0.1, 5)
    assert splits.available(True, {"train"}) == {"train", "validation", "test"}
    assert splits.available(False, {"train"}) == {"train", "validation"}
    assert splits.available(False, {"test"}) == {"test"}
    assert Splits(0, 0.0).available(True, {"train"}) == {"train"}


def test_online() -> None:
    assert Splits(0.1, 0).online
    assert not Splits(0.1, 1).online


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.0), (0, -1), (0.5, 0.5), (1.0, 0.0), (0.1, 100.0)])
def test_shares_that_leave_no_train_or_are_none_are_refused(validation: float, test: float) -> None:
    with pytest.raises(UserError, match=r"data\.splits\.(validation|test)"):
        Splits(validation, test)


@pytest.mark.parametrize("strata", [None, [0] * 10])
@pytest.mark.parametrize(("validation", "test"), [(5, 5), (11, 0), (0.9, 8)])
def test_numbers_that_leave_no_train_are_refused(validation: float, test: float, strata: list[int] | None) -> None:
    with pytest.raises(UserError, match=r"leave none of the 10 records to train on"):
        _assign(Splits(validation, test), [place * 2**60 for place in range(10)], strata)


def test_an_empty_split_is_refused_of_the_whole() -> None:
    splits = Splits(1e-9, 0)
    numbers = splits.assign(numpy.array(_keys(10), dtype=numpy.uint64), None, True, TRAIN)
    with pytest.raises(UserError, match=r"splits\.validation 1e-09: none of the 10 records falls into validation"):
        splits.refuse_empty(numbers, True, TRAIN)
    splits.refuse_empty(numbers, pooled=False, given={"train", "validation"})
    with pytest.raises(UserError, match="to train on"):
        Splits(0.5, 0).refuse_empty(numpy.array([1, 1], dtype=numpy.int8), True, TRAIN)


def test_no_records_are_shared_out_to_none() -> None:
    none: list[int] = []
    for strata in (None, none):
        for splits in (Splits(), Splits(2, 2)):
            assert _assign(splits, [], strata) == []


def test_options_can_be_sent_to_workers() -> None:
    assert pickle.loads(pickle.dumps(Splits(3, 0.1))) == Splits(3, 0.1)


@given(st.integers(0, 500), st.integers(1, 60))
def test_evenly_spaced_takes_every_nth_from_the_first(size: int, limit: int) -> None:
    chosen = evenly_spaced(range(size), limit)
    step = 1
    while len(range(0, size, step)) > limit:
        step += 1
    assert chosen == list(range(0, size, step))


def test_evenly_spaced_of_e2e() -> None:
    assert evenly_spaced(range(4672), 156) == list(range(0, 4672, 30))
    assert evenly_spaced(range(5), None) == [0, 1, 2, 3, 4]
