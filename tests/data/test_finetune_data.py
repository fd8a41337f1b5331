"""FinetuneData by itself: stages, splits, limits, sources, and what it refuses."""

import hashlib
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from character_tokenizers import BOS, EOS, ids

from ftlab.data import FinetuneData
from ftlab.data.assignment import Splits
from ftlab.data.collators import Row
from ftlab.data.leaks import Leaks
from ftlab.data.mixing import Mixing, Source
from ftlab.data.records import Message, pair
from ftlab.errors import UserError
from ftlab.networks import Network

Write = Callable[..., str]
Make = Callable[..., FinetuneData]


def _ids(rows: Iterable[Row]) -> list[list[int]]:
    return [list(row.input_ids) for row in rows]


def _answers(rows: Iterable[Row]) -> list[list[int]]:
    """Learned tokens without the stop token."""
    return [[label for label in row.labels.tolist() if label != -100][:-1] for row in rows]


def _place(text: str) -> float:
    """Where a prompt's hash stands between 0 and 1, as `data.splits` documents it."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2**64


class TestStages:
    def test_rows_are_encoded_in_the_order_of_the_file(self, make: Make) -> None:
        data = make()
        data.setup("fit")
        first = data.rows("train")[0]
        assert list(first.input_ids) == [BOS, *ids("m0\n"), *ids("r"), EOS]
        assert first.labels.tolist() == [-100] * 4 + [*ids("r"), EOS]
        assert _answers(data.rows("validation")) == [ids(f"r{place}") for place in range(9)]

    def test_setup_twice_does_nothing_more(self, make: Make) -> None:
        data = make()
        data.setup(None)
        data.setup("test")
        prepared, records = data.prepared, data.records("test")
        data.setup("fit")
        data.setup("test")
        assert data.prepared is prepared
        assert data.records("test") is records

    def test_summary_counts(self, make: Make) -> None:
        summary = make().summary()
        # <s>, "m0" to "m9" or "m10" to "m22", line feed; then 1 to 5 r and </s>
        answers = sum(place % 5 + 1 for place in range(23))
        assert summary == {
            "prepared": make().prepared.directory.name,
            "read": 23 + 9 + 4,
            "train_rows": 23,
            "train_target_tokens": answers + 23,
            "train_tokens": 10 * 4 + 13 * 5 + answers + 23,
            "train_longest": 11,
            "validation_rows": 9,
            "validation_target_tokens": 9 * 3,
            "validation_tokens": 9 * (4 + 3),
            "validation_longest": 7,
            "test_rows": 4,
            "test_target_tokens": 4 * 2,
            "test_tokens": 4 * (3 + 2),
            "test_longest": 5,
            "dropped": {},
            "truncated": 0,
        }

    def test_nothing_is_printed(self, make: Make, capfd: pytest.CaptureFixture[str]) -> None:
        data = make(workers=2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=".*os.fork", category=DeprecationWarning)
            data.setup("fit")
            data.setup("test")
            assert sum(len(batch["input_ids"]) for batch in data.train_dataloader()) == 23
        assert capfd.readouterr() == ("", "")


class TestSplits:
    def test_limits_are_evenly_spaced(self, make: Make) -> None:
        data = make(validation_limit=4, test_limit=2)
        assert _answers(data.rows("validation")) == [ids(f"r{place}") for place in (0, 3, 6)]
        # every second of v0 to v4, with all rows of v0, v2 and v4 would be three: every third
        assert [record.prompt for record in data.records("validation")] == ["v0\n", "v3\n"]
        assert [record.prompt for record in data.records("test")] == ["a\n", "c\n"]
        assert len(data.rows("train")) == 23
        rows, prompts = data.scoring_loaders("test")
        assert sum(batch["target_tokens"] for batch in rows) == 3 * 2  # 1, 3 and 4, each with its stop token
        assert sorted(index for batch in prompts for index in batch["indices"]) == [0, 1]

    def test_records_are_grouped_by_prompt(self, make: Make) -> None:
        assert make().records("test") == [
            pair("a\n", ("1", "3"), "test.jsonl:1"),
            pair("b\n", ("2",), "test.jsonl:2"),
            pair("c\n", ("4",), "test.jsonl:4"),
        ]

    def test_prompts_carry_their_records_places(self, make: Make) -> None:
        data = make(eval_batch_size=2)
        seen = {}
        for batch in data.prompt_loader("validation"):
            for row, mask, index in zip(batch["input_ids"], batch["attention_mask"], batch["indices"], strict=True):
                seen[index] = row[mask.bool()].tolist()
        assert seen == {index: [BOS, *ids(f"v{index}\n")] for index in range(5)}

    def test_a_single_file_is_shared_out(self, make: Make, write: Write) -> None:
        path = write("all.jsonl", [{"mr": f"m{place}", "ref": "r"} for place in range(300)])
        data = make(path=path, splits=Splits(0.1, 0.2))
        places = {place: _place(f"m{place}\n") for place in range(300)}
        for split, low, high in (("validation", 0, 0.1), ("train", 0.1, 0.8), ("test", 0.8, 1)):
            expected = [place for place in range(300) if low <= places[place] < high]
            assert data.rows(split).records.tolist() == expected
            if split != "train":
                assert [record.prompt for record in data.records(split)] == [f"m{place}\n" for place in expected]

    def test_a_single_file_is_counted_out(self, make: Make, write: Write) -> None:
        path = write("all.jsonl", [{"mr": f"m{place}", "ref": "r"} for place in range(40)])
        data = make(path=path, splits=Splits(3, 5))
        order = sorted(range(40), key=lambda place: _place(f"m{place}\n"))
        assert data.rows("validation").records.tolist() == sorted(order[:3])
        assert data.rows("test").records.tolist() == sorted(order[-5:])
        assert len(data.rows("train")) == 32
        assert {record.prompt for record in data.records("test")} == {f"m{place}\n" for place in order[-5:]}

    def test_groups_stay_together(self, make: Make, write: Write) -> None:
        rows = [{"mr": f"m{place}", "ref": "r", "author": f"author {place % 20}"} for place in range(100)]
        data = make(path=write("all.jsonl", rows), group_by="author", splits=Splits(0.2, 0.2))
        for split, low, high in (("validation", 0, 0.2), ("train", 0.2, 0.8), ("test", 0.8, 1)):
            mine = {author for author in range(20) if low <= _place(f"author {author}") < high}
            assert data.rows(split).records.tolist() == [place for place in range(100) if place % 20 in mine]

    @pytest.mark.parametrize("splits", [Splits(0.1, 0.2), Splits(10, 20)])
    def test_strata_are_spread_evenly(self, make: Make, write: Write, splits: Splits) -> None:
        """Of 100 records 80 are easy and 20 hard: so are validation, test, and what is scored of them."""
        rows = [{"mr": f"m{n}", "ref": "r", "level": "hard" if n % 5 == 0 else "easy"} for n in range(100)]
        data = make(path=write("all.jsonl", rows), stratify_by="level", splits=splits)
        for split, easy, hard in (("train", 56, 14), ("validation", 8, 2), ("test", 16, 4)):
            numbers = data.rows(split).records
            assert ((numbers % 5 != 0).sum(), (numbers % 5 == 0).sum()) == (easy, hard)
            if split != "train":
                assert [record.prompt for record in data.records(split)] == [f"m{n}\n" for n in numbers]

    def test_validation_out_of_a_training_file(self, make: Make, directory: str) -> None:
        """Test has a file and stays as it is; validation is carved out of training."""
        Path(directory, "dev.jsonl").unlink()
        data = make(splits=Splits(4, 9))
        order = sorted(range(23), key=lambda place: _place(f"m{place}\n"))
        assert data.rows("validation").records.tolist() == sorted(order[:4])
        assert (len(data.rows("train")), len(data.rows("test"))) == (19, 4)

    def test_what_is_scored_without_test_records(self, make: Make, directory: str) -> None:
        assert make().scored_split == "test"
        Path(directory, "test.jsonl").unlink()
        data = make()
        assert not data.has_split("test")
        assert data.scored_split == "validation"
        data.setup("test")
        assert len(data.records("validation")) == 5
        with pytest.raises(UserError, match=r"has no test records; add a test file or raise data\.splits\.test"):
            data.records("test")

    def test_running_text_is_scored_by_its_loss_alone(self, network: Network, write: Write) -> None:
        path = write("all.jsonl", [{"text": f"text {place}"} for place in range(20)])
        data = FinetuneData(network, path, splits=Splits(4, 4))
        rows, prompts = data.scoring_loaders("test")
        assert sum(batch["samples"] for batch in rows) == 4
        assert (data.records("test"), list(prompts)) == ([], [])


class TestOverflow:
    def test_refuse_names_the_first(self, make: Make) -> None:
        # <s> m 4 \n rrrrr </s> are 10, <s> m 1 0 \n r </s> 7
        with pytest.raises(
            UserError, match=r"train\.jsonl:5 takes 10 tokens where data\.max_length allows 9, and 6 of"
        ):
            make(max_length=9).rows("train")

    def test_dropped_rows_take_their_references_along(self, make: Make, directory: str) -> None:
        Path(directory, "test.jsonl").write_text(
            '{"mr": "a", "ref": "1"}\n{"mr": "a", "ref": "12345"}\n{"mr": "abcdef", "ref": "1"}\n'
        )
        data = make(max_length=6, overflow="drop")  # <s> a \n 1 </s> are 5
        assert data.records("test") == [pair("a\n", ("1",), "test.jsonl:1")]
        assert len(data.rows("test")) == 1
        assert data.summary()["dropped"]["too_long"] == 2 + 21 + 9  # <s> m 0 \n r </s> and m5's are 6; v0's are 7

    def test_truncated_prompts_leave_room_to_generate(self, make: Make, directory: str) -> None:
        for split in ("train", "test"):
            Path(directory, f"{split}.jsonl").write_text(f'{{"mr": "{split}cdef", "ref": "1"}}\n')
        (batch,) = make(max_length=6, overflow="truncate").prompt_loader("test", room=2)
        assert batch["input_ids"].tolist() == [[BOS, *ids("ef\n")]]


class TestSources:
    @pytest.fixture
    def two(self, write: Write) -> list[str]:
        """Four rows in one format, three in another."""
        write("one/train.jsonl", [{"q": f"a{place}", "a": "1"} for place in range(4)])
        write("two/train.jsonl", [{"instruction": f"b{place}", "output": "2"} for place in range(3)])
        return [str(Path(write(f"{name}/notes.txt", [])).parent) for name in ("one", "two")]

    @pytest.fixture
    def made(self, network: Network, two: list[str]) -> Make:
        def make_data(first: dict, second: dict, **options: Any) -> FinetuneData:
            sources = [Source(two[0], prompt="{q}", response="{a}", **first), Source(two[1], **second)]
            return FinetuneData(network, sources=sources, splits=Splits(0, 0), batch_size=1, **options)

        return make_data

    @staticmethod
    def _epoch(data: FinetuneData) -> list[str]:
        return sorted(data.encoder.decode(batch["input_ids"][0].tolist()[1:-1]) for batch in data.batches())

    def test_each_is_read_in_its_own_format(self, made: Make) -> None:
        data = made({}, {})
        assert _ids(data.rows("train")) == [
            [BOS, *ids(text), EOS] for text in ("a01", "a11", "a21", "a31", "b02", "b12", "b22")
        ]
        assert data.rows("train").origins.tolist() == [0, 0, 0, 0, 1, 1, 1]
        assert self._epoch(data) == ["a01", "a11", "a21", "a31", "b02", "b12", "b22"]

    def test_limits_and_epochs(self, made: Make) -> None:
        data = made({"limit": 2}, {"epochs": 2})
        assert len(data.rows("train")) == 5
        assert self._epoch(data) == sorted(["a01", "a11"] + ["b02", "b12", "b22"] * 2)
        assert data.train_batches_per_epoch() == 8

    def test_weights(self, made: Make) -> None:
        """All but never drawn from, the first ends the epoch only when the second is through."""
        data = made({"weight": 1e-9}, {"weight": 1.0}, mixing=Mixing("probability"))
        assert self._epoch(data) == ["b02", "b12", "b22"]

    def test_all_exhausted_has_every_row(self, made: Make) -> None:
        data = made({}, {}, mixing=Mixing("probability", stop="all_exhausted"))
        assert set(self._epoch(data)) == {"a01", "a11", "a21", "a31", "b02", "b12", "b22"}

    def test_weights_prepare_nothing_anew(self, made: Make) -> None:
        directories = {
            made({"weight": weight, "epochs": epochs}, {}).prepared.directory for weight, epochs in ((1, 1), (2, 3))
        }
        assert len(directories) == 1

    def test_duplicates_across_sources(self, network: Network, write: Write) -> None:
        paths = [
            write(f"{name}.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": name, "completion": "b"}])
            for name in "xy"
        ]
        data = FinetuneData(network, sources=list(map(Source, paths)), splits=Splits(0, 0))
        assert _ids(data.rows("train")) == [[BOS, *ids(text), EOS] for text in ("ab", "xb", "yb")]
        assert data.rows("train").origins.tolist() == [0, 0, 1]

    def test_one_of_path_and_sources(self, network: Network, two: list[str]) -> None:
        for options in ({}, {"path": two[0], "sources": [Source(two[0])]}):
            with pytest.raises(UserError, match=r"data\.path names one source and data\.sources a list"):
                FinetuneData(network, **options)


class TestPrompts:
    def test_without_references(self, make: Make, write: Write) -> None:
        path = write("ask.jsonl", [{"mr": "a"}, {"mr": "b", "ref": None}, {"mr": "a"}, {"mr": "c", "ref": "d"}])
        data = make(path=path)
        data.setup("predict")
        assert data.prompts == [
            pair("a\n", (), "ask.jsonl:1"),
            pair("b\n", (), "ask.jsonl:2"),
            pair("c\n", ("d",), "ask.jsonl:4"),
        ]
        batches = list(data.predict_dataloader())
        assert sorted(index for batch in batches for index in batch["indices"]) == [0, 1, 2]

    def test_of_a_directory_the_test_file(self, make: Make) -> None:
        assert [record.prompt for record in make(test_limit=1).prompts] == ["a\n", "b\n", "c\n"]

    def test_of_messages(self, make: Make, write: Write, tmp_path: Path) -> None:
        template = tmp_path / "turns.jinja"
        template.write_text("{% for m in messages %}{{ m.role[0] }}:{{ m.content }}</s>{% endfor %}a:")
        path = write("ask.jsonl", [{"messages": [{"role": "user", "content": "hi"}]}])
        data = make(path=path, prompt=None, response=None)
        (record,) = data.prompts
        assert (record.context, record.answers) == ((Message("user", "hi"),), ())

    def test_nothing_to_answer_is_refused(self, make: Make, write: Write, directory: str) -> None:
        for split in ("dev", "test"):
            Path(directory, f"{split}.jsonl").unlink()
        text = write("text.jsonl", [{"text": f"text {place}"} for place in range(20)])
        only_train = make(splits=Splits(0, 0))
        running_text = make(path=text, prompt=None, response=None)
        for data, name in ((only_train, directory), (running_text, text)):
            with pytest.raises(UserError, match="has no prompt to answer; give a file, or") as caught:
                data.setup("predict")
            assert str(caught.value).startswith(f"data.path: {name} has")
        assert make(splits=Splits(5, 0)).prompts


class TestRefusals:
    def test_max_length_beyond_the_context(self, make: Make) -> None:
        assert make().encoder.max_length == 64
        with pytest.raises(
            UserError, match=r"data\.max_length is 65, but .* has a context of 64 tokens; give 64 or less"
        ):
            make(max_length=65).setup("fit")

    @pytest.mark.parametrize(
        "name",
        [
            "max_length",
            "batch_size",
            "batch_tokens",
            "eval_batch_size",
            "validation_limit",
            "test_limit",
            "preparation_workers",
            "workers",
            "seed",
        ],
    )
    def test_numbers_below_the_least(self, make: Make, name: str) -> None:
        least = 0 if name in ("workers", "seed") else 1
        make(**{name: least})
        with pytest.raises(UserError, match=rf"data\.{name} is {least - 1}; give {least} or more"):
            make(**{name: least - 1})

    def test_a_validation_that_is_not_there(self, make: Make, directory: str) -> None:
        Path(directory, "dev.jsonl").unlink()
        data = make(splits=Splits(0, 0))
        data.setup("fit")
        assert data.val_dataloader() == []
        with pytest.raises(UserError, match="has no validation records; add a validation file or raise"):
            data.setup("validate")

    def test_a_validation_of_which_nothing_is_left(self, make: Make, directory: str) -> None:
        Path(directory, "dev.jsonl").write_text('{"mr": "a", "ref": " "}\n')
        data = make()
        with pytest.raises(UserError, match=r"nothing is left of the validation records of .* ftlab prepare shows"):
            data.rows("validation")

    def test_dropping_everything(self, make: Make) -> None:
        with pytest.raises(
            UserError,
            match=r"of the 36 records read from .*set \(train\).* none is left to train on \(too_long 36\); see data",
        ):
            make(max_length=2, overflow="drop").setup("fit")

    def test_devices_that_no_row_is_left_for_train_with_the_others(self, make: Make) -> None:
        data = make(batch_size=8)
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        trainer = SimpleNamespace(global_rank=30, world_size=32, limit_train_batches=1.0, strategy=strategy)
        data.trainer = cast(Any, trainer)
        (batch,) = data.train_dataloader()
        assert set(batch["labels"].flatten().tolist()) == {-100}
        assert batch["attention_mask"].sum() > 0
        assert (batch["target_tokens"], batch["tokens"], batch["samples"], batch["records"]) == (0, 0, 0, [])
        trainer.global_rank = 22
        (batch,) = data.train_dataloader()
        assert batch["samples"] == 1
        assert batch["target_tokens"] > 0

    def test_leaks_are_refused(self, make: Make, directory: str) -> None:
        Path(directory, "test.jsonl").write_text('{"mr": "m3", "ref": "rrrr"}\n')
        with pytest.raises(UserError, match=r"1 of the 1 test records .* test\.jsonl:1 in train\.jsonl:4 \(record\)"):
            make().setup("test")
        data = make(leaks=Leaks("drop"))
        assert len(data.rows("train")) == 22
        assert data.summary()["dropped"] == {"leak": 1}
