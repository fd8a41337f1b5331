"""FinetuneData as Lightning and the other parts use it: splits, limits, loaders, and resuming at any batch."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from character_tokenizers import BOS, EOS, ids
from lightning.pytorch import Callback, LightningModule, Trainer

from ftlab.data import FinetuneData
from ftlab.data.splits import assign_split
from ftlab.data.templates import Record
from ftlab.errors import UserError
from ftlab.networks import Network

Write = Callable[..., str]


@pytest.fixture
def directory(write: Write, tmp_path: Path) -> str:
    """23 rows to train on, 9 on 5 prompts to validate, 4 on 3 prompts to test."""
    write("set/train.jsonl", [{"mr": f"m{place}", "ref": "r" * (place % 5 + 1)} for place in range(23)])
    write("set/dev.jsonl", [{"mr": f"v{place // 2}", "ref": f"r{place}"} for place in range(9)])
    write("set/test.jsonl", [{"mr": mr, "ref": ref} for mr, ref in [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")]])
    return str(tmp_path / "set")


@pytest.fixture
def make(network: Network, directory: str) -> Callable[..., FinetuneData]:
    """Data over the directory's columns."""

    def make_data(**options: Any) -> FinetuneData:
        return FinetuneData(
            **({"network": network, "path": directory, "prompt": "{mr}\n", "response": "{ref}"} | options)
        )

    return make_data


def _answers(rows: list[Example]) -> list[list[int]]:
    return [[label for label in row.labels if label != -100][:-1] for row in rows]


class TestStages:
    def test_rows_are_encoded_in_the_order_of_the_file(self, make: Callable[..., FinetuneData]) -> None:
        data = make()
        data.setup("fit")
        first = Example([BOS, *ids("m0\n"), *ids("r"), EOS], [-100] * 4 + [*ids("r"), EOS])
        assert data.rows("train")[0] == first
        assert _answers(data.rows("validation")) == [ids(f"r{place}") for place in range(9)]

    def test_each_stage_reads_only_what_it_needs(self, make: Callable[..., FinetuneData], directory: str) -> None:
        Path(directory, "train.jsonl").write_text("broken")
        Path(directory, "test.jsonl").write_text("broken")
        data = make()
        data.prepare_data()
        data.setup("validate")
        assert list(data.summary()) == [
            f"validation_{name}" for name in ("rows", "tokens", "target_tokens", "longest", "dropped", "truncated")
        ]
        for stage, name in {"fit": "train", "test": "test", "predict": "test"}.items():
            with pytest.raises(UserError, match=rf"{name}\.jsonl:1 is broken JSON"):
                data.setup(stage)

    def test_setup_twice_does_nothing_more(self, make: Callable[..., FinetuneData]) -> None:
        data = make()
        data.setup(None)
        data.setup("test")
        rows, records = data.rows("train"), data.records("test")
        data.setup("fit")
        data.setup("test")
        assert all(one is other for one, other in zip(rows, data.rows("train"), strict=True))
        assert data.records("test") is records

    def test_summary_counts(self, make: Callable[..., FinetuneData]) -> None:
        data = make()
        data.setup("fit")
        data.setup("test")
        summary = data.summary()
        # <s>, "m0" to "m9" or "m10" to "m22", line feed; then 1 to 5 r and </s>
        answers = sum(place % 5 + 1 for place in range(23))
        assert summary["train_rows"] == 23
        assert summary["train_target_tokens"] == answers + 23
        assert summary["train_tokens"] == 10 * 4 + 13 * 5 + answers + 23
        assert summary["train_longest"] == 11
        assert (summary["test_scored_records"], summary["test_scored_rows"]) == (3, 4)

    def test_nothing_is_printed(self, make: Callable[..., FinetuneData], capfd: pytest.CaptureFixture[str]) -> None:
        data = make(workers=2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=".*os.fork", category=DeprecationWarning)
            data.setup("fit")
            data.setup("test")
            assert sum(len(batch["input_ids"]) for batch in data.train_dataloader()) == 23
        assert capfd.readouterr() == ("", "")


class TestSplits:
    def test_limits_are_evenly_spaced(self, make: Callable[..., FinetuneData]) -> None:
        data = make(validation_limit=4, test_limit=2)
        assert _answers(data.rows("validation")) == [ids(f"r{place}") for place in (0, 3, 6)]
        # every second of v0 to v4, with all rows of v0, v2 and v4 would be three: every third
        assert [record.prompt for record in data.records("validation")] == ["v0\n", "v3\n"]
        assert [record.prompt for record in data.records("test")] == ["a\n", "c\n"]
        assert len(data.records("train")) == len(data.rows("train")) == 23
        rows, prompts = data.scoring_loaders("test")
        assert sum(batch["target_tokens"] for batch in rows) == 3 * 2  # 1, 3 and 4, each with its stop token
        assert sorted(index for batch in prompts for index in batch["indices"]) == [0, 1]

    def test_records_are_grouped_by_prompt(self, make: Callable[..., FinetuneData]) -> None:
        assert make().records("test") == [
            Record("a\n", ("1", "3"), "test.jsonl:1"),
            Record("b\n", ("2",), "test.jsonl:2"),
            Record("c\n", ("4",), "test.jsonl:4"),
        ]

    def test_prompts_carry_their_records_places(self, make: Callable[..., FinetuneData]) -> None:
        data = make(eval_batch_size=2)
        seen = {}
        for batch in data.prompt_loader("validation"):
            for row, mask, index in zip(batch["input_ids"], batch["attention_mask"], batch["indices"], strict=True):
                seen[index] = row[mask.bool()].tolist()
        assert seen == {index: [BOS, *ids(f"v{index}\n")] for index in range(5)}

    def test_a_single_file_is_split_three_ways(self, make: Callable[..., FinetuneData], write: Write) -> None:
        path = write("all.jsonl", [{"mr": f"m{place}", "ref": "r"} for place in range(300)])
        data = make(path=path, validation_share=0.1, test_share=0.2)
        prompts = [f"m{place}\n" for place in range(300)]
        for split in ("train", "validation", "test"):
            expected = [prompt for prompt in prompts if assign_split(prompt, 0.1, 0.2) == split]
            assert [record.prompt for record in data.records(split)] == expected

    def test_what_is_scored_without_test_records(self, make: Callable[..., FinetuneData], directory: str) -> None:
        assert make().scored_split == "test"
        Path(directory, "test.jsonl").unlink()
        data = make()
        assert not data.has_split("test")
        assert data.scored_split == "validation"
        data.setup("test")
        assert len(data.records("validation")) == 5
        with pytest.raises(UserError, match="has no test records"):
            data.records("test")

    def test_dropped_rows_take_their_records_along(self, make: Callable[..., FinetuneData], directory: str) -> None:
        Path(directory, "test.jsonl").write_text(
            '{"mr": "a", "ref": "1"}\n{"mr": "a", "ref": "12345"}\n{"mr": "abcdef", "ref": "1"}\n'
        )
        data = make(max_length=6, overflow="drop")  # <s> a \n 1 </s> are 5
        assert data.records("test") == [Record("a\n", ("1", "12345"), "test.jsonl:1")]
        assert data.summary()["test_scored_rows"] == 1

    def test_truncated_prompts_leave_room_to_generate(self, make: Callable[..., FinetuneData], directory: str) -> None:
        Path(directory, "test.jsonl").write_text('{"mr": "abcdef", "ref": "1"}\n')
        (batch,) = make(max_length=6, overflow="truncate").prompt_loader("test", room=2)
        assert batch["input_ids"].tolist() == [[BOS, *ids("ef\n")]]


class TestRefusals:
    def test_max_length_beyond_the_context(self, make: Callable[..., FinetuneData]) -> None:
        assert make().encoder.max_length == 64
        with pytest.raises(
            UserError, match=r"data\.max_length is 65, but .* has a context of 64 tokens; give 64 or less"
        ):
            make(max_length=65).setup("fit")

    @pytest.mark.parametrize(
        "name", ["max_length", "batch_size", "eval_batch_size", "validation_limit", "test_limit", "workers", "seed"]
    )
    def test_numbers_below_the_least(self, make: Callable[..., FinetuneData], name: str) -> None:
        least = 0 if name in ("workers", "seed") else 1
        make(**{name: least})
        with pytest.raises(UserError, match=rf"data\.{name} is {least - 1}; give {least} or more"):
            make(**{name: least - 1})

    def test_a_validation_that_is_not_there(self, make: Callable[..., FinetuneData], directory: str) -> None:
        Path(directory, "dev.jsonl").unlink()
        data = make(validation_share=0)
        data.setup("fit")
        assert data.val_dataloader() == []
        with pytest.raises(UserError, match="has no validation records"):
            data.setup("validate")

    def test_dropping_everything(self, make: Callable[..., FinetuneData]) -> None:
        with pytest.raises(UserError, match=r"data\.overflow: drop leaves none of the 23 train rows"):
            make(max_length=2, overflow="drop").setup("fit")

    def test_more_devices_than_rows(self, make: Callable[..., FinetuneData]) -> None:
        assert make().train_batches_per_epoch(23) == 1
        with pytest.raises(UserError, match="has 23 training rows, too few for 24 devices"):
            make().train_batches_per_epoch(24)


class Recorder(LightningModule):
    """Notes the batches it is given; learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list[list[list[int]]] = []
        self.validated = self.tested = 0

    def training_step(self, batch: dict, _: int) -> torch.Tensor:
        self.trained.append(batch["input_ids"].tolist())
        return 0 * self.weight.sum()

    def validation_step(self, batch: dict, _: int) -> None:
        self.validated += batch["target_tokens"]

    def test_step(self, batch: dict, batch_idx: int, dataloader_idx: int) -> None:
        self.tested += len(batch["indices"]) if dataloader_idx else batch["target_tokens"]

    def predict_step(self, batch: dict, _: int) -> list[int]:
        return batch["indices"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(Callback):
    """Saves after a number of steps, or at the end of the first epoch."""

    def __init__(self, path: Path, step: int | None) -> None:
        self.path = path
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.step is None and trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def _trainer(*callbacks: Callback, **options: Any) -> Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(
        accelerator="cpu",
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
        **(quiet | {"max_epochs": 3} | options),  # type: ignore[arg-type]
    )


@pytest.mark.filterwarnings("ignore")
class TestLightning:
    def test_every_stage_runs(self, make: Callable[..., FinetuneData]) -> None:
        data, module = make(batch_size=4), Recorder()
        trainer = _trainer(num_sanity_val_steps=0)
        trainer.fit(module, data)
        assert len(module.trained) == 3 * data.train_batches_per_epoch() == 18
        assert module.validated == 3 * 9 * 3  # epochs, rows, "r0" and its stop token
        trainer.test(module, data, verbose=False)
        assert module.tested == 4 * 2 + 3
        assert sorted(index for batch in trainer.predict(module, data) for index in batch) == [0, 1, 2]

    def test_fit_without_validation(self, make: Callable[..., FinetuneData], directory: str) -> None:
        Path(directory, "dev.jsonl").unlink()
        module = Recorder()
        _trainer(max_epochs=1).fit(module, make(validation_share=0))
        assert (len(module.trained), module.validated) == (3, 0)

    def test_batches_are_the_first_epochs(self, make: Callable[..., FinetuneData]) -> None:
        data, module = make(batch_size=4), Recorder()
        _trainer(max_epochs=1).fit(module, data)
        assert [batch["input_ids"].tolist() for batch in data.batches()] == module.trained

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("step", [1, 5, 6, 7, 12, None])
    def test_a_resumed_run_trains_what_was_left(
        self, make: Callable[..., FinetuneData], tmp_path: Path, workers: int, step: int | None
    ) -> None:
        """Six batches an epoch: in its middle, on its last batch, after its end (None), and in the next."""
        checkpoint = tmp_path / "run.ckpt"
        options = {"batch_size": 4, "workers": workers}
        whole, resumed = Recorder(), Recorder()
        _trainer(SaveAt(checkpoint, step)).fit(whole, make(**options))
        _trainer().fit(resumed, make(**options), ckpt_path=str(checkpoint))
        assert len(whole.trained) == 18
        assert resumed.trained == whole.trained[6 if step is None else step :]

    def test_a_run_extended_by_epochs_goes_on_with_the_next(
        self, make: Callable[..., FinetuneData], tmp_path: Path
    ) -> None:
        whole, first, second = Recorder(), Recorder(), Recorder()
        _trainer(max_epochs=2).fit(whole, make())
        trainer = _trainer(max_epochs=1)
        trainer.fit(first, make())
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        _trainer(max_epochs=2).fit(second, make(), ckpt_path=str(tmp_path / "run.ckpt"))
        assert first.trained + second.trained == whole.trained

    def test_each_rank_takes_its_share(
        self, make: Callable[..., FinetuneData], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def loaders(rank: int, world: int, batch_size: int) -> tuple[list, list]:
            data = make(batch_size=batch_size, eval_batch_size=2)
            monkeypatch.setattr(data, "_rank_and_world", lambda: (rank, world))
            train = [[tuple(row) for row in batch["labels"].tolist()] for batch in data.train_dataloader()]
            prompts = [batch["indices"] for batch in data.prompt_loader("validation")]
            return train, prompts

        alone, halves = loaders(0, 1, 4), [loaders(rank, 2, 2) for rank in range(2)]
        assert [len(one) + len(other) for one, other in zip(halves[0][0], halves[1][0], strict=True)] == [
            len(batch) for batch in alone[0]
        ]
        shared = [index for _, prompts in halves for batch in prompts for index in batch]
        assert sorted(shared) == [0, 1, 2, 3, 4]
