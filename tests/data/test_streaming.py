"""Streams give the batches that prepared rows give, remember nothing but the window, and resume in mid-epoch."""

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pyarrow
import pytest
import torch
from character_tokenizers import EOS, ids
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, Trainer

from ftlab.data import FinetuneData
from ftlab.data.assignment import Splits
from ftlab.data.collators import PadCollator, Row
from ftlab.data.duplicates import Duplicates
from ftlab.data.leaks import Leaks
from ftlab.data.mixing import Mixing, Source
from ftlab.data.samplers import ShuffledBatchSampler
from ftlab.data.stream_loader import StreamLoader
from ftlab.errors import UserError
from ftlab.methods import LoRA
from ftlab.networks import Network

Write = Callable[..., str]
Make = Callable[..., Any]
EXACT = Leaks(ngram=None)
NO_SPLITS = Splits(0, 0)
APART = Duplicates(exact=False)


def _rows(name: str, count: int) -> list[dict]:
    return [{"mr": f"{name}{place}", "ref": "r" * (place % 5 + 1)} for place in range(count)]


@pytest.fixture
def directory(write: Write, tmp_path: Path) -> str:
    """23 records to train on, of which three come twice and one is too long; and 3 to validate."""
    rows = _rows("m", 19)
    write("set/train.jsonl", [*rows, rows[3], {"mr": "long", "ref": "x" * 60}, rows[18], rows[0]])
    write("set/dev.jsonl", _rows("v", 3))
    return str(tmp_path / "set")


@pytest.fixture
def make(network: Network, directory: str) -> Callable[..., FinetuneData]:
    """Data over the directory's columns, in windows of 7."""

    def make_data(**options: Any) -> FinetuneData:
        defaults: dict[str, Any] = {
            "network": network,
            "path": None if "sources" in options else directory,
            "prompt": "{mr}\n",
            "response": "{ref}",
            "overflow": "drop",
            "leaks": EXACT,
            "batching": "pad",
            "batch_size": 4,
            "shuffle_window": 7,
        }
        return FinetuneData(**(defaults | options))

    return make_data


def _trainer(steps: int, rank: int = 0, world_size: int = 1, **more: Any) -> Any:
    """What loaders ask a trainer."""
    defaults = {"max_steps": steps, "max_epochs": -1, "fast_dev_run": 0, "accumulate_grad_batches": 1}
    defaults["limit_train_batches"] = 1.0
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    ranks = {"global_rank": rank, "world_size": world_size, "strategy": strategy}
    return SimpleNamespace(**(defaults | ranks | more))


def _in_memory(data: FinetuneData, epochs: int, rank: int = 0, world_size: int = 1) -> list[dict[str, Any]]:
    found = []
    for epoch in range(epochs):
        data.trainer = _trainer(0, rank, world_size)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        found += list(loader)
    return found


def _streamed(data: FinetuneData, batches: int, rank: int = 0, world_size: int = 1) -> list[dict[str, Any]]:
    data.trainer = _trainer(batches, rank, world_size)
    return list(data.train_dataloader())


def _same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    return len(one) == len(other) and all(
        set(a) == set(b) and all(torch.equal(a[n], b[n]) if isinstance(b[n], torch.Tensor) else a[n] == b[n] for n in b)
        for a, b in zip(one, other, strict=True)
    )


class TestAsInMemory:
    @pytest.mark.parametrize("window", [1, 7, 19, 100])
    def test_one_source(self, make: Make, window: int) -> None:
        expected = _in_memory(make(shuffle_window=window), 3)
        assert [len(batch["input_ids"]) for batch in expected] == [4, 4, 4, 4, 3] * 3
        streamed = make(shuffle_window=window, streaming=True)
        assert _same(_streamed(streamed, 15), expected)
        assert streamed.summary()["train_dropped"] == {"exact_duplicate": 3, "too_long": 1}

    @pytest.mark.parametrize("world_size", [2, 3, 4])
    def test_every_rank_takes_its_share(self, make: Make, world_size: int) -> None:
        """19 rows: the last global batch of 8 has 3; of 12, 7; of 16, 3, so that one of four ranks is idle."""
        for rank in range(world_size):
            expected = _in_memory(make(), 2, rank, world_size)
            assert _same(_streamed(make(streaming=True), len(expected), rank, world_size), expected)

    @pytest.mark.parametrize(
        "options",
        [
            {"mixing": Mixing("probability"), "duplicates": APART},
            {"mixing": Mixing("probability", stop="all_exhausted"), "duplicates": APART},
            {"mixing": Mixing("concatenate")},
            {"mixing": Mixing("concatenate"), "duplicates": Duplicates(normalised=True)},
            {"mixing": Mixing("concatenate"), "duplicates": Duplicates(exact=False, near=0.7, shingle=1)},
            {"mixing": Mixing("concatenate"), "preparation_workers": 2},
        ],
        ids=["first_exhausted", "all_exhausted", "concatenate", "normalised", "near", "workers"],
    )
    def test_several_sources(self, make: Make, write: Write, tmp_path: Path, options: dict[str, Any]) -> None:
        """The second has a file of the same name with the same first line, and comes twice; the third is a part."""
        more = [*_rows("m", 2), *_rows("o", 5), {"mr": "M1", "ref": "RR"}, {"mr": "o1 a b c d", "ref": "rr"}]
        write("more/train.jsonl", [*more, {"mr": "o1 a b c", "ref": "rr"}, *_rows("q", 3)])
        write("third.jsonl", _rows("t", 12))
        sources = [
            Source(str(tmp_path / "set"), 2.0),
            Source(str(tmp_path / "more"), epochs=2),
            Source(str(tmp_path / "third.jsonl"), limit=9),
        ]
        options = {"sources": sources, "splits": NO_SPLITS} | options
        expected = _in_memory(make(**options), 2)
        assert len(expected) > 4
        assert _same(_streamed(make(**options, streaming=True), len(expected)), expected)

    def test_a_record_of_several_rows(self, make: Make, write: Write) -> None:
        rows = [{"mr": f"m{place}", "ref": [f"a{place}", "b", "c"][: place % 3 + 1]} for place in range(10)]
        path = write("all.jsonl", rows)
        expected = _in_memory(make(path=path, splits=NO_SPLITS), 2)
        assert sum(len(batch["input_ids"]) for batch in expected) == 2 * 19
        assert _same(_streamed(make(path=path, splits=NO_SPLITS, streaming=True), len(expected)), expected)

    def test_running_text_in_pieces(self, make: Make, tmp_path: Path) -> None:
        path = tmp_path / "book.txt"
        path.write_text("\n\n".join(f"{place} " * (40 * place) for place in range(1, 5)))
        options: dict[str, Any] = {
            "path": str(path),
            "prompt": None,
            "response": None,
            "sample_by": "paragraph",
            "overflow": "split",
        }
        options |= {"splits": NO_SPLITS, "format": "text"}
        expected = _in_memory(make(**options), 2)
        assert len(expected) > 4
        assert _same(_streamed(make(**options, streaming=True), len(expected)), expected)

    def test_the_first_batches_are_there_for_methods_that_look(self, make: Make) -> None:
        assert _same(list(make(streaming=True).batches()), list(make().batches()))

    def test_evaluation_is_that_of_files(self, make: Make) -> None:
        def answers(data: FinetuneData) -> list[list[int]]:
            data.setup("validate")
            return [row.labels[row.labels >= 0].tolist() for row in data.rows("validation")]

        assert answers(make(streaming=True)) == answers(make()) == [[*ids("r" * n), EOS] for n in (1, 2, 3)]
        assert make(streaming=True).records("validation") == make().records("validation")


class TestLeaks:
    def test_dropped_as_in_memory(self, make: Make, write: Write, tmp_path: Path) -> None:
        write("set/dev.jsonl", [*_rows("m", 2), {"mr": "M5", "ref": "other"}, {"mr": "new", "ref": "r"}])
        options = {"leaks": Leaks("drop", ngram=None)}
        expected = _in_memory(make(**options), 2)
        assert sum(len(batch["input_ids"]) for batch in expected) == 2 * 16
        data = make(**options, streaming=True)
        assert _same(_streamed(data, len(expected)), expected)
        assert data.summary()["train_dropped"]["leak"] == 3

    def test_a_benchmark(self, make: Make, write: Write) -> None:
        options = {"leaks": Leaks("drop", ngram=None, against=(write("bench.jsonl", _rows("m", 6)),))}
        expected = _in_memory(make(**options), 1)
        assert _same(_streamed(make(**options, streaming=True), len(expected)), expected)
        assert sum(len(batch["input_ids"]) for batch in expected) == 13

    def test_the_first_stops_training(self, make: Make, write: Write) -> None:
        write("set/dev.jsonl", [*_rows("v", 3), {"mr": "m7", "ref": "rrr"}])
        with pytest.raises(
            UserError, match=r"1 of the 4 validation .*: dev\.jsonl:4 in train\.jsonl:8 \(record\), and"
        ):
            _streamed(make(streaming=True), 1)

    def test_as_many_as_are_allowed(self, make: Make, write: Write) -> None:
        write("set/dev.jsonl", [*_rows("v", 3), {"mr": "m7", "ref": "rrr"}])
        assert len(_streamed(make(streaming=True, leaks=Leaks(ngram=None, allowed=0.25)), 10)) == 10

    def test_nothing_to_leak_into(self, make: Make, directory: str) -> None:
        Path(directory, "dev.jsonl").unlink()
        data = make(streaming=True, splits=NO_SPLITS, leaks=Leaks())
        assert len(_streamed(data, 5)) == 5
        assert data.val_dataloader() == []


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"leaks": Leaks()}, r"data\.leaks\.ngram: .* set it to null"),
            ({"batching": "pack"}, r"data\.batching pack: .* set data\.batching to pad"),
            ({"batching": "bucket"}, r"data\.batching bucket: "),
            ({"batching": "auto", "batch_tokens": 100}, r"data\.batch_tokens: .* leave data\.batch_tokens out"),
            ({"stratify_by": "mr"}, r"data\.stratify_by: .* leave it out"),
        ],
    )
    def test_what_needs_all_of_training(self, make: Make, options: dict[str, Any], said: str) -> None:
        with pytest.raises(UserError, match=said):
            make(streaming=True, **options).setup("fit")

    @pytest.mark.parametrize("splits", [Splits(), Splits(2, 0), Splits(0, 0.1)])
    def test_carving(self, make: Make, write: Write, splits: Splits) -> None:
        data = make(streaming=True, path=write("all.jsonl", _rows("m", 9)), splits=splits)
        for stage in ("fit", "test"):
            with pytest.raises(UserError, match=r"all\.jsonl has no file for .* data\.splits\.test to 0"):
                data.setup(stage)

    def test_carving_names_the_source_that_lacks_files(self, make: Make, write: Write, directory: str) -> None:
        path = write("all.jsonl", _rows("m", 9))
        with pytest.raises(UserError) as caught:
            make(streaming=True, sources=[Source(directory), Source(path)], splits=Splits(2, 0)).setup("fit")
        assert str(caught.value).startswith(f"data.streaming: {path} has no file for validation")

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"mixing": Mixing("temperature"), "duplicates": APART}, "temperature needs to know"),
            ({"mixing": Mixing("probability")}, r"data\.duplicates: .* data\.mixing\.how to concatenate"),
            ({"mixing": Mixing("probability"), "duplicates": Duplicates(exact=False, near=0.9)}, r"data\.duplicates: "),
        ],
    )
    def test_mixtures(self, make: Make, directory: str, options: dict[str, Any], said: str) -> None:
        sources = [Source(directory), Source(directory)]
        with pytest.raises(UserError, match=said):
            make(streaming=True, sources=sources, **options).setup("fit")

    @pytest.mark.parametrize(
        ("trainer", "said"),
        [(_trainer(-1), r"give trainer\.max_steps"), (_trainer(5, max_epochs=2), r"leave trainer\.max_epochs out")],
    )
    def test_trainings_without_end(self, make: Make, trainer: Any, said: str) -> None:
        data = make(streaming=True)
        data.trainer = trainer
        with pytest.raises(UserError, match=said):
            data.train_dataloader()

    @pytest.mark.parametrize("ask", [lambda d: d.rows("train"), lambda d: d.train_batches_per_epoch()])
    def test_what_nobody_knows_of_a_stream(self, make: Make, ask: Callable[[FinetuneData], Any]) -> None:
        with pytest.raises(UserError, match=r"data\.streaming: .* set it to false"):
            ask(make(streaming=True))

    def test_nothing_left(self, make: Make) -> None:
        with pytest.raises(UserError, match=r"no row to train on \(read 23, dropped too_long 23\)"):
            _streamed(make(streaming=True, max_length=3), 1)

    def test_windows_are_pad_s_in_memory_too(self, make: Make) -> None:
        assert make(batching="auto").layout.kind == "pad"
        with pytest.raises(UserError, match=r"data\.batching pack: .* data\.shuffle_window"):
            _ = make(batching="pack").layout


class _Stub:
    """Rows of one token, numbered, in the order of a plan."""

    key = "stub"

    def __init__(self, rows: list[int]) -> None:
        self.numbers = rows

    def rows(self) -> Iterator[Row]:
        for number in self.numbers:
            yield Row(numpy.array([number]), [(0, 1)])


def _loader(numbers: list[int], batches: int, **options: Any) -> StreamLoader:
    defaults: dict[str, Any] = {"window": 5, "batch_size": 2, "collate": PadCollator(0), "seed": 1}
    return StreamLoader(_Stub(numbers), **(defaults | options), batches=batches)  # type: ignore[arg-type]


def _numbers(batches: Iterator[Any]) -> list[list[int]]:
    return [batch["input_ids"].flatten().tolist() for batch in batches]


class TestLoader:
    @settings(max_examples=60)
    @given(
        st.lists(st.integers(1, 1000), min_size=1, max_size=40),
        st.integers(1, 45),
        st.integers(1, 6),
        st.integers(1, 3),
        st.integers(0, 60),
        st.integers(0, 2**40),
    )
    def test_batches_are_the_sampler_s_wherever_it_is_interrupted(
        self, rows: list[int], window: int, batch_size: int, world_size: int, stop: int, seed: int
    ) -> None:
        plan = numpy.array(rows)
        for rank in range(world_size):
            sampler = ShuffledBatchSampler(len(rows), batch_size, seed, rank, world_size, plan, window)
            expected = []
            for epoch in range(3):
                sampler.set_epoch(epoch)
                expected += list(sampler)
            options = {"window": window, "batch_size": batch_size, "seed": seed, "rank": rank, "world_size": world_size}
            first = _loader(rows, len(expected), **options)
            stop = min(stop, len(expected))
            seen = _numbers(next(first) for _ in range(stop))
            second = _loader(rows, len(expected), **options)
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
            assert seen + _numbers(second) == expected
            assert _numbers(first) == expected[stop:]

    def test_length_and_end(self) -> None:
        loader = _loader([1, 2, 3], 5)
        assert len(loader) == 5
        assert [len(batch) for batch in _numbers(loader)] == [2, 1, 2, 1, 2]
        assert list(loader) == []

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"seed": 2}, "seed 1 and this one has 2"),
            ({"window": 6}, "window 5 and this one has 6"),
            ({"batch_size": 3}, "global batch size 2 and this one has 3"),
            ({"world_size": 2}, "global batch size 2 and this one has 4"),
        ],
    )
    def test_goes_on_with_no_other_batches(self, options: dict[str, Any], said: str) -> None:
        state = _loader([1, 2, 3], 5).state_dict()
        with pytest.raises(UserError, match=said):
            _loader([1, 2, 3], 5, **options).load_state_dict(state)

    @pytest.mark.parametrize(("rows", "said"), [([1, 2, 9, 4, 5], "rows"), ([1, 2], "rows in an epoch at least 4")])
    def test_goes_on_with_no_other_rows(self, rows: list[int], said: str) -> None:
        first = _loader([1, 2, 3, 4, 5], 9)
        for _ in range(2):
            next(first)
        second = _loader(rows, 9)
        second.load_state_dict(first.state_dict())
        with pytest.raises(UserError, match=f"the run to resume had {said}"):
            next(second)

    def test_goes_on_with_no_other_worse_answers(self) -> None:
        def loader(worse: int) -> StreamLoader:
            rows = [Row(numpy.array([n]), [(0, 1)], Row(numpy.array([worse]), [(0, 1)])) for n in range(5)]
            stream = SimpleNamespace(key="stub", rows=lambda: iter(rows))
            return StreamLoader(stream, 5, 2, PadCollator(0), 1, batches=9)  # type: ignore[arg-type]

        first = loader(7)
        next(first)
        same, other = loader(7), loader(8)
        for second in (same, other):
            second.load_state_dict(first.state_dict())
        next(same)
        with pytest.raises(UserError, match="the run to resume had rows"):
            next(other)

    def test_what_is_read_later_may_change(self) -> None:
        first = _loader([1, 2, 3, 4, 5, 6], 9, window=2)
        next(first)
        second = _loader([1, 2, 3, 4, 5, 9], 9, window=2)
        second.load_state_dict(first.state_dict())
        assert len(_numbers(second)) == 8


class TestMemory:
    def test_no_more_is_read_than_is_needed(self, make: Make, tmp_path: Path) -> None:
        """The broken line is in the third chunk of a thousand."""
        path = tmp_path / "late.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in _rows("m", 2500)) + "{broken\n")
        data = make(streaming=True, path=str(path), splits=NO_SPLITS, batch_size=50, shuffle_window=100)
        data.trainer = _trainer(51)
        loader = data.train_dataloader()
        for _ in range(40):
            next(loader)
        assert data.summary()["train_read"] == 2000
        with pytest.raises(UserError, match=r"late\.jsonl:2501 is broken JSON"):
            next(loader)

    def test_is_flat(self, make: Make, tmp_path: Path) -> None:
        path = tmp_path / "large.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in _rows("m", 20_000)))
        options = {"path": str(path), "splits": NO_SPLITS, "duplicates": APART}
        data = make(streaming=True, batch_size=100, shuffle_window=1000, **options)
        data.trainer = _trainer(200)
        alive, arrow = [], []
        gc.freeze()  # what is there already is not looked through
        for number, _ in enumerate(data.train_dataloader()):
            if number % 20 == 5:
                alive.append(sum(isinstance(thing, Row) for thing in gc.get_objects()))
                arrow.append(pyarrow.total_allocated_bytes())
        gc.unfreeze()
        assert len(alive) == 10
        assert max(alive) <= 1000 + 100
        assert max(arrow) <= 1.2 * arrow[0]
        assert data.summary()["train_rows"] == 20_000


class SaveAt(Callback):
    """Writes a checkpoint after one batch."""

    def __init__(self, batches: int, path: Path) -> None:
        self.batches = batches
        self.path = path
        self.seen = 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.seen += 1
        if self.seen == self.batches:
            trainer.save_checkpoint(self.path)


class TestTrainer:
    @pytest.fixture
    def train(
        self, make: Make, make_module: Make, make_trainer: Make, tied_network: Network, curves: Any
    ) -> Callable[..., tuple[dict[str, torch.Tensor], list[float]]]:
        """Trains LoRA with dropout, and gives its weights and losses."""

        def run(trainer: dict[str, Any], ckpt_path: Path | None = None, **options: Any) -> Any:
            adam = lambda groups: torch.optim.AdamW(groups, lr=1e-2)  # noqa: E731
            module = make_module(LoRA(r=2, dropout=0.3), network=tied_network, optimizer=adam)
            data = make(**({"network": tied_network, "streaming": True, "template": "plain"} | options))
            log = type(curves)()
            make_trainer(**({"logger": log, "max_epochs": None} | trainer)).fit(module, data, ckpt_path=ckpt_path)
            weights = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
            return weights, log.curve("train_loss")

        return run

    def test_trains_what_is_trained_in_memory(self, train: Make) -> None:
        """Five batches an epoch."""
        weights, losses = train({"max_steps": 15})
        expected, in_memory = train({"max_epochs": 3}, streaming=False)
        assert losses == in_memory
        assert len(losses) == 15
        assert all(torch.equal(weights[name], expected[name]) for name in expected)

    @pytest.mark.parametrize("batches", [2, 6, 10])
    def test_resumes_exactly(self, train: Make, tmp_path: Path, batches: int) -> None:
        """Two batches a step, five an epoch; stopped in the middle of the first, in the second, and at its end."""
        path = tmp_path / "step.ckpt"
        options = {"max_steps": 9, "accumulate_grad_batches": 2}
        whole, losses = train(options | {"callbacks": [SaveAt(batches, path)]})
        assert len(losses) == 9
        resumed, others = train(options, path)
        assert others == losses[batches // 2 :]
        assert all(torch.equal(resumed[name], whole[name]) for name in whole)

    def test_goes_on_beyond_its_end(self, train: Make, tmp_path: Path) -> None:
        path = tmp_path / "step.ckpt"
        whole, losses = train({"max_steps": 8})
        train({"max_steps": 3, "callbacks": [SaveAt(3, path)]})
        longer, others = train({"max_steps": 8}, path)
        assert others == losses[3:]
        assert all(torch.equal(longer[name], whole[name]) for name in whole)

    def test_lightning_s_own_epochs_do_not_matter(self, train: Make, tmp_path: Path) -> None:
        path = tmp_path / "step.ckpt"
        whole, losses = train({"max_steps": 8})
        limited = {"max_steps": 8, "limit_train_batches": 3}
        weights, others = train(limited | {"callbacks": [SaveAt(4, path)]})
        assert others == losses
        resumed, later = train(limited, path)
        assert later == losses[4:]
        assert all(torch.equal(whole[n], weights[n]) and torch.equal(whole[n], resumed[n]) for n in whole)

    @pytest.mark.parametrize(("options", "said"), [({"seed": 7}, "seed 42"), ({"streaming": False}, "batching stream")])
    def test_goes_on_with_nothing_else(self, train: Make, tmp_path: Path, options: dict[str, Any], said: str) -> None:
        path = tmp_path / "step.ckpt"
        train({"max_steps": 2, "callbacks": [SaveAt(1, path)]})
        with pytest.raises(UserError, match=f"the run to resume had {said}"):
            train({"max_steps": 2}, path, **options)

    def test_a_file_of_the_same_size_is_not_the_same_file(self, train: Make, tmp_path: Path, directory: str) -> None:
        path, file = tmp_path / "step.ckpt", Path(directory, "train.jsonl")
        train({"max_steps": 3, "callbacks": [SaveAt(2, path)]})
        file.write_text(file.read_text().replace("m2", "n2"))
        with pytest.raises(UserError, match="the run to resume had rows"):
            train({"max_steps": 3}, path)
