"""Collators: padding and packing by hand."""

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftlab.data.collators import PackCollator, PadCollator, Prompt, PromptCollator, Row


def test_rows_are_padded_on_the_right_and_counted() -> None:
    # 9 is the pad and also a real token: masks go by position
    batch = PadCollator(pad_id=9)([Row([1, 2, 3, 9], [(2, 4)]), Row([5, 6], [(0, 2)])])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 9], [5, 6, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 3, 9], [5, 6, -100, -100]]
    assert {value.dtype for value in batch.values() if isinstance(value, torch.Tensor)} == {torch.long}
    assert batch["target_tokens"] == 3  # 3 and 9, and 6: the label at position 0 is predicted from nothing
    assert batch["tokens"] == 6
    assert batch["samples"] == 2
    assert "position_ids" not in batch


def test_packs_restart_positions_and_lose_no_target() -> None:
    rows = [Row([1, 2, 3, 9], [(2, 4)]), Row([5, 6], [(0, 2)]), Row([7, 8, 4], [(1, 2)])]
    batch = PackCollator(pad_id=9)([rows[:2], rows[2:]])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 9, 5, 6], [7, 8, 4, 9, 9, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 1, 2]]
    assert batch["bounds"] == [0, 4, 6, 9, 12]  # of two samples, of one, of padding
    # 5 is the first of its sample: nothing of its own stands before it
    assert batch["labels"].tolist() == [[-100, -100, 3, 9, -100, 6], [-100, 8, -100, -100, -100, -100]]
    assert {value.dtype for value in batch.values() if isinstance(value, torch.Tensor)} == {torch.long}
    assert (batch["target_tokens"], batch["tokens"], batch["samples"]) == (4, 9, 3)
    assert "attention_mask" not in batch


def test_packs_of_a_fixed_capacity() -> None:
    batch = PackCollator(pad_id=0, capacity=5)([[Row([1, 2], [(0, 2)])], [Row([3], [(0, 1)])]])
    assert batch["input_ids"].tolist() == [[1, 2, 0, 0, 0], [3, 0, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 0, 1, 2, 3]]


def test_flat_packs_lie_end_to_end() -> None:
    packs = [[Row([1, 2], [(0, 2)])], [Row([3], []), Row([4, 5], [(1, 2)])]]
    batch = PackCollator(pad_id=0, flat=True)(packs)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 0, 1]]
    assert batch["bounds"] == [0, 2, 3, 5]
    assert batch["labels"].tolist() == [[-100, 2, -100, -100, 5]]
    assert PackCollator(pad_id=0, capacity=4, flat=True)(packs)["input_ids"].tolist() == [[1, 2, 3, 4, 5, 0, 0, 0]]


def test_prompts_are_padded_on_the_left() -> None:
    batch = PromptCollator(pad_id=9)([Prompt(7, [1, 2, 3]), Prompt(4, [5])])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [9, 9, 5]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["indices"] == [7, 4]


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """A row with any spans, its arrays as the cache gives them or plain lists."""
    ids = draw(st.lists(st.integers(1, 99), min_size=1, max_size=12))
    cuts = sorted(draw(st.sets(st.integers(0, len(ids)), max_size=6)))
    spans = list(zip(cuts[::2], cuts[1::2], strict=False))
    if draw(st.booleans()):
        return Row(numpy.array(ids, dtype=numpy.int32), numpy.array(spans, dtype=numpy.int32).reshape(-1, 2))
    return Row(ids, spans)


@given(st.lists(st.lists(rows(), min_size=1, max_size=4), min_size=1, max_size=4), st.booleans())
def test_packed_and_padded_hold_the_same_samples(packs: list[list[Row]], flat: bool) -> None:
    padded = PadCollator(0)([row for pack in packs for row in pack])
    packed = PackCollator(0, flat=flat)(packs)
    for name in ("target_tokens", "tokens", "samples"):
        assert packed[name] == padded[name]

    def predicted(ids: torch.Tensor, labels: torch.Tensor) -> list[tuple[int, int]]:
        """(token before, label), wherever something is predicted."""
        learned = labels[:, 1:] != -100
        return list(zip(ids[:, :-1][learned].tolist(), labels[:, 1:][learned].tolist(), strict=True))

    assert predicted(packed["input_ids"], packed["labels"]) == predicted(padded["input_ids"], padded["labels"])
    starts = (packed["position_ids"] == 0).sum()
    tails = sum(1 for ids in packed["input_ids"] if ids[-1] == 0)
    assert starts == packed["samples"] + tails


def test_an_empty_list_of_spans_from_arrow() -> None:
    row = Row(numpy.array([1, 2], dtype=numpy.int32), numpy.zeros((0, 2), dtype=numpy.int32))
    assert PadCollator(0)([row])["labels"].tolist() == [[-100, -100]]


@pytest.mark.parametrize("collate", [PadCollator(0), lambda rows: PackCollator(0)([[row] for row in rows])])
def test_tensors_own_their_memory(collate: PadCollator) -> None:
    """Pinning and passing between processes take a tensor's whole storage."""
    batch = collate([Row([1, 2, 3], [(0, 3)])])
    for value in batch.values():
        assert not isinstance(value, torch.Tensor) or value.untyped_storage().nbytes() == value.nbytes
