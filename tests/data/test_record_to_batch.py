"""One record's way from file to batch, by hand; and every record's, packed or not."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from character_tokenizers import BOS, EOS, PAD, ids
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftlab.data import FinetuneData
from ftlab.data.assignment import Splits
from ftlab.data.collators import Row
from ftlab.errors import UserError
from ftlab.networks import Network

Write = Callable[..., str]
Make = Callable[..., FinetuneData]


@pytest.fixture
def make_from(network: Network, write: Write) -> Callable[..., FinetuneData]:
    """Data over one file of rows, all of them for training."""

    def make_data(rows: list[dict], **options: Any) -> FinetuneData:
        path = write("rows/train.jsonl", rows)
        return FinetuneData(network, str(Path(path).parent), **({"splits": Splits(0, 0)} | options))

    return make_data


def _ids(rows: Iterable[Row]) -> list[list[int]]:
    return [list(row.input_ids) for row in rows]


class TestOneRecord:
    """A record's way by hand, in the plain template: <s> prompt answer </s>."""

    def test_from_file_to_batch(self, make_from: Make) -> None:
        data = make_from(
            [{"question": "2+2?", "answer": "4"}, {"question": "hi", "answer": "yo!"}],
            prompt="Q: {question}\n",
            response="{answer}",
            batch_size=2,
        )
        rows = data.rows("train")
        assert _ids(rows) == [[BOS, *ids("Q: 2+2?\n4"), EOS], [BOS, *ids("Q: hi\nyo!"), EOS]]
        assert [row.spans.tolist() for row in rows] == [[[9, 11]], [[7, 11]]]
        assert rows[0].labels.tolist() == [-100] * 9 + [*ids("4"), EOS]
        assert (rows.lengths.tolist(), rows.targets.tolist()) == ([11, 11], [2, 4])
        assert (rows.records.tolist(), rows.origins.tolist()) == ([0, 1], [0, 0])
        (batch,) = data.batches()
        by_ids = {
            tuple(row): labels
            for row, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
        }
        assert by_ids == {tuple(row.input_ids): row.labels.tolist() for row in rows}
        assert batch["attention_mask"].tolist() == [[1] * 11] * 2
        assert (batch["target_tokens"], batch["tokens"], batch["samples"]) == (6, 22, 2)

    def test_padding_is_no_label(self, make_from: Make) -> None:
        data = make_from([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "bcd"}], batch_size=2)
        (batch,) = data.batches()
        short = batch["attention_mask"].sum(1).argmin()
        assert batch["input_ids"][short].tolist() == [BOS, *ids("ab"), EOS, PAD, PAD]
        assert batch["labels"][short].tolist() == [-100, -100, *ids("b"), EOS, -100, -100]
        assert batch["attention_mask"][short].tolist() == [1, 1, 1, 1, 0, 0]

    def test_a_packed_batch(self, make_from: Make) -> None:
        data = make_from(
            [{"prompt": "a", "completion": "b"}, {"prompt": "cd", "completion": "e"}],
            batching="pack",
            batch_size=1,
            max_length=16,
        )
        (batch,) = data.batches()
        first = [BOS, *ids("ab"), EOS], [-100, -100, *ids("b"), EOS], [0, 1, 2, 3]
        second = [BOS, *ids("cde"), EOS], [-100] * 3 + [*ids("e"), EOS], [0, 1, 2, 3, 4]
        found = batch["input_ids"].tolist()[0], batch["labels"].tolist()[0], batch["position_ids"].tolist()[0]
        assert found in [
            tuple(one + other for one, other in zip(*order, strict=True))
            for order in ((first, second), (second, first))
        ]
        assert "attention_mask" not in batch
        assert (batch["target_tokens"], batch["tokens"], batch["samples"]) == (4, 9, 2)

    def test_several_answers_are_a_row_each(self, make_from: Make) -> None:
        data = make_from([{"prompt": "a", "completion": ["b", "c"]}, {"prompt": "d", "completion": "e"}])
        assert _ids(data.rows("train")) == [[BOS, *ids(text), EOS] for text in ("ab", "ac", "de")]
        assert data.rows("train").records.tolist() == [0, 0, 1]

    def test_a_preference_keeps_its_worse_answer(self, make_from: Make) -> None:
        data = make_from([{"prompt": "a", "chosen": "good", "rejected": "bad"}])
        (row,) = data.rows("train")
        assert row.rejected is not None
        assert (list(row.input_ids), row.spans.tolist()) == ([BOS, *ids("agood"), EOS], [[2, 7]])
        assert (list(row.rejected.input_ids), row.rejected.spans.tolist()) == ([BOS, *ids("abad"), EOS], [[2, 6]])

    def test_others_have_no_worse_answer(self, make_from: Make) -> None:
        data = make_from([{"prompt": "a", "completion": "b"}])
        assert data.rows("train")[0].rejected is None

    def test_text_in_pieces(self, make_from: Make) -> None:
        data = make_from([{"text": "abcdefghij"}], max_length=5, overflow="split")
        rows = data.rows("train")
        # <s> a … j </s> are 12 tokens; a last piece of two is long enough to be learned from
        assert _ids(rows) == [[BOS, *ids("abcd")], ids("efghi"), [*ids("j"), EOS]]
        assert [row.spans.tolist() for row in rows] == [[[1, 5]], [[0, 5]], [[0, 2]]]
        assert rows.targets.tolist() == [4, 4, 1]
        assert rows.records.tolist() == [0, 0, 0]

    def test_tokens_as_they_came(self, make_from: Make) -> None:
        data = make_from([{"input_ids": [7, 8, 9], "labels": [-100, 8, 9]}, {"input_ids": [4, 5]}], format="tokens")
        assert _ids(data.rows("train")) == [[7, 8, 9], [4, 5]]
        assert [row.labels.tolist() for row in data.rows("train")] == [[-100, 8, 9], [4, 5]]
        assert data.rows("train").targets.tolist() == [2, 1]

    def test_tokens_whose_pieces_learn_nothing_are_counted(self, make_from: Make) -> None:
        """The one label stands first in its piece, where there is nothing to predict it from."""
        data = make_from(
            [{"input_ids": [7, 8, 9, 10], "labels": [-100, -100, 9, -100]}, {"input_ids": [4, 5]}],
            max_length=2,
            overflow="split",
        )
        assert _ids(data.rows("train")) == [[4, 5]]
        assert data.prepared.report["dropped"] == {"no_target": 1}

    def test_a_system_turn_needs_a_template(self, make_from: Make, tmp_path: Path) -> None:
        rows = [{"prompt": "a", "completion": "b"}]
        with pytest.raises(UserError, match=r"train\.jsonl:1 is a conversation .* set data\.template"):
            make_from(rows, system="Be kind.").rows("train")
        template = tmp_path / "turns.jinja"
        template.write_text("{% for m in messages %}{{ m.role[0] }}:{{ m.content }}</s>{% endfor %}")
        row = make_from(rows, system="Be kind.", template=str(template)).rows("train")[0]
        assert list(row.input_ids) == [*ids("s:Be kind."), EOS, *ids("u:a"), EOS, *ids("a:b"), EOS]

    @pytest.mark.parametrize(
        ("side", "length", "kept"),
        [("left", 7, [BOS, *ids("ef\nxy"), EOS]), ("right", 9, [BOS, *ids("abcdef\nx")])],
    )
    def test_truncated(self, make_from: Make, side: str, length: int, kept: list[int]) -> None:
        rows = [{"prompt": "abcdef\n", "completion": "xy"}, {"prompt": "a\n", "completion": "b"}]
        data = make_from(rows, max_length=length, overflow="truncate", truncate_from=side)
        assert _ids(data.rows("train"))[0] == kept
        assert data.summary()["truncated"] == 1

    def test_a_stop_that_no_answer_ends_in_is_refused(self, make_from: Make) -> None:
        rows = [{"prompt": f"abcdef{n}\n", "completion": "xy"} for n in range(3)]
        with pytest.raises(UserError, match=r"none of the 3 training rows ends in a stop token"):
            make_from(rows, max_length=10, overflow="truncate", truncate_from="right").rows("train")

    def test_summary_names_what_was_left_out(self, make_from: Make) -> None:
        rows = [{"prompt": "a", "completion": answer} for answer in ("b", "b", "  ", "c" * 70)]
        summary = make_from(rows, overflow="drop").summary()
        assert summary["read"] == 4
        assert summary["dropped"] == {"exact_duplicate": 1, "empty_answer": 1, "too_long": 1}


class TestPacked:
    @pytest.mark.parametrize("batching", ["pack", "bucket", "pad"])
    @settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=20),
        batch_size=st.integers(1, 3),
        world=st.integers(1, 2),
    )
    def test_an_epoch_holds_every_row_once(
        self, make_from: Make, batching: str, sizes: list[tuple[int, int]], batch_size: int, world: int
    ) -> None:
        """Through files, cache and loaders: no token lost, none twice, no label on a prompt."""
        rows = [{"prompt": f"{place:02}" + "p" * p, "completion": "c" * c} for place, (p, c) in enumerate(sizes)]
        data = make_from(rows, batching=batching, batch_size=batch_size, max_length=32)
        found = []
        for rank in range(world):
            data._rank_and_world = lambda rank=rank: (rank, world)  # type: ignore[method-assign]
            for batch in data.train_dataloader():
                found += _samples(batch) if batch["samples"] else []  # none of an idle rank
        expected = []
        for row in rows:
            sample = [BOS, *ids(row["prompt"] + row["completion"]), EOS]
            learned = len(row["completion"]) + 1
            expected.append((sample, [-100] * (len(sample) - learned) + sample[-learned:]))
        assert sorted(found) == sorted(expected)


def _samples(batch: Any) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of each sample in a batch, padded or packed."""
    samples = []
    for place, (row, labels) in enumerate(zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)):
        if "position_ids" in batch:
            positions = batch["position_ids"][place].tolist()
            starts = [start for start, position in enumerate(positions) if position == 0] + [len(row)]
        else:
            starts = [0, int(batch["attention_mask"][place].sum())]
        for start, end in pairwise(starts):
            if row[start] != PAD:
                samples.append((row[start:end], labels[start:end]))
    return samples
