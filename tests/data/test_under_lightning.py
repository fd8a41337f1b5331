"""FinetuneData under Lightning: its loaders, what each process takes, and resuming."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ftlab.data import FinetuneData
from ftlab.data.assignment import Splits
from ftlab.errors import UserError

Make = Callable[..., FinetuneData]


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
    def test_every_stage_runs(self, make: Make) -> None:
        data, module = make(batch_size=4), Recorder()
        trainer = _trainer(num_sanity_val_steps=0)
        trainer.fit(module, data)
        assert len(module.trained) == 3 * data.train_batches_per_epoch() == 18
        assert module.validated == 3 * 9 * 3  # epochs, rows, "r0" and its stop token
        trainer.test(module, data, verbose=False)
        assert module.tested == 4 * 2 + 3
        assert sorted(index for batch in trainer.predict(module, data) for index in batch) == [0, 1, 2]

    def test_fit_without_validation(self, make: Make, directory: str) -> None:
        Path(directory, "dev.jsonl").unlink()
        module = Recorder()
        _trainer(max_epochs=1).fit(module, make(splits=Splits(0, 0)))
        assert (len(module.trained), module.validated) == (3, 0)

    def test_batches_are_the_first_epochs(self, make: Make) -> None:
        data, module = make(batch_size=4), Recorder()
        _trainer(max_epochs=1).fit(module, data)
        assert [batch["input_ids"].tolist() for batch in data.batches()] == module.trained

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("step", [1, 5, 6, 7, 12, None])
    def test_a_resumed_run_trains_what_was_left(
        self, make: Make, tmp_path: Path, workers: int, step: int | None
    ) -> None:
        """Six batches an epoch: in its middle, on its last batch, after its end (None), and in the next."""
        checkpoint = tmp_path / "run.ckpt"
        options = {"batch_size": 4, "workers": workers}
        whole, resumed = Recorder(), Recorder()
        _trainer(SaveAt(checkpoint, step)).fit(whole, make(**options))
        _trainer().fit(resumed, make(**options), ckpt_path=str(checkpoint))
        assert len(whole.trained) == 18
        assert resumed.trained == whole.trained[6 if step is None else step :]

    def test_a_run_extended_by_epochs_goes_on_with_the_next(self, make: Make, tmp_path: Path) -> None:
        whole, first, second = Recorder(), Recorder(), Recorder()
        _trainer(max_epochs=2).fit(whole, make())
        trainer = _trainer(max_epochs=1)
        trainer.fit(first, make())
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        _trainer(max_epochs=2).fit(second, make(), ckpt_path=str(tmp_path / "run.ckpt"))
        assert first.trained + second.trained == whole.trained

    def test_each_rank_takes_its_share(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_fewer_records_than_devices_are_not_judged(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a loader without a batch Lightning would say so on one of them, and the others would wait."""
    data = make(eval_batch_size=1, validation_limit=2)
    for rank in range(3):
        monkeypatch.setattr(data, "_rank_and_world", lambda rank=rank: (rank, 3))
        with pytest.raises(UserError, match="2 records cannot be judged on 3 devices: take fewer of these"):
            data.val_dataloader()
    monkeypatch.setattr(data, "_rank_and_world", lambda: (1, 2))
    assert len(data.val_dataloader()) == 1
