"""Checkpoints, the saved model, the check of the frozen base, and token counts, each in a real training."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftlab.callbacks import Checkpoints, FrozenBase, ModelWriter, Throughput
from ftlab.errors import UserError
from ftlab.methods import Full, LoRA, Method, QLoRA
from ftlab.modules import FinetuneModule
from ftlab.networks import Network, fingerprint, frozen_tensors
from ftlab.runs import CheckpointOptions, Run

Make = Callable[..., Any]


def step_of(checkpoint: Path) -> int | None:
    return torch.load(checkpoint, weights_only=True)["global_step"] if checkpoint.is_file() else None


def adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-2)


class Clock(pl.Callback):
    """Stands still but for the hooks that are named, each of which takes so many seconds."""

    def __init__(self, **hooks: float) -> None:
        self.now = 0.0
        for name, seconds in hooks.items():
            setattr(self, name, lambda *_, seconds=seconds: self._go_on(seconds))

    def _go_on(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        return self.now


class TestCheckpoints:
    def test_best_is_written_where_the_validation_loss_falls(
        self, run: Run, make_module: Make, make_data: Make, make_trainer: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        losses = [3.0, 2.0, 2.5, 2.0, 1.0]
        module, noted = make_module(LoRA(r=1)), []
        monkeypatch.setattr(
            module, "on_validation_epoch_end", lambda: module.log("val_loss", losses[module.current_epoch])
        )

        class Note(pl.Callback):
            def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
                noted.append(step_of(run.best))

        trainer = make_trainer(max_epochs=5, limit_val_batches=1, callbacks=[Checkpoints(run), Note()])
        trainer.fit(module, make_data(batch_size=8))
        assert noted == [None, 2, 4, 4, 4]  # two steps an epoch; Lightning has checkpoints written last
        assert step_of(run.best) == 10
        assert step_of(run.last) == 10

    def test_sanity_check_writes_nothing(
        self, run: Run, make_module: Make, make_data: Make, make_trainer: Make
    ) -> None:
        seen = []

        class Note(pl.Callback):
            def on_train_start(self, *_: Any) -> None:
                seen.append(run.directory.exists())

        options = {"num_sanity_val_steps": 1, "limit_val_batches": 1, "max_steps": 1}
        make_trainer(**options, callbacks=[Checkpoints(run), Note()]).fit(make_module(LoRA(r=1)), make_data())
        assert seen == [False]

    @pytest.mark.parametrize(("every", "written"), [(None, [4, 7]), (3, [3, 4, 6, 7]), (2, [2, 4, 6, 7])])
    def test_last_is_written_every_so_many_steps_and_at_each_end(
        self, every: int | None, written: list[int], run: Run, make_module: Make, make_data: Make, make_trainer: Make
    ) -> None:
        """4 steps an epoch of two batches each; training ends in the middle of the second."""
        steps = []

        class Note(pl.Callback):
            def on_save_checkpoint(self, trainer: pl.Trainer, *_: Any) -> None:
                steps.append(trainer.global_step)

        trainer = make_trainer(
            max_epochs=-1,
            max_steps=7,
            accumulate_grad_batches=2,
            callbacks=[Checkpoints(run, CheckpointOptions(every)), Note()],
        )
        trainer.fit(make_module(LoRA(r=1)), make_data(batch_size=2))
        assert list(dict.fromkeys(steps)) == written
        assert step_of(run.last) == 7

    def test_a_loss_that_is_no_number_is_never_the_best(
        self, run: Run, make_module: Make, make_data: Make, make_trainer: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        losses, module = [1.0, math.nan, 2.0], make_module(LoRA(r=1))
        monkeypatch.setattr(
            module, "on_validation_epoch_end", lambda: module.log("val_loss", losses[module.current_epoch])
        )
        trainer = make_trainer(max_epochs=3, limit_val_batches=1, callbacks=[Checkpoints(run)])
        trainer.fit(module, make_data(batch_size=8))
        assert step_of(run.best) == 2  # the end of the first epoch

    def test_a_resumed_run_saves_on_steps_only(
        self, run: Run, make_module: Make, make_data: Make, make_trainer: Make
    ) -> None:
        """Two micro-batches a step, a checkpoint every two steps."""
        written = []

        class Watch(pl.Callback):
            def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
                written.append((trainer.global_step, run.last.is_file() and run.last.stat().st_mtime_ns))

        for steps in (2, 4):
            trainer = make_trainer(
                max_epochs=-1,
                max_steps=steps,
                accumulate_grad_batches=2,
                callbacks=[Checkpoints(run, CheckpointOptions(2)), Watch()],
            )
            resume = run.last if run.last.is_file() else None
            trainer.fit(make_module(LoRA(r=1)), make_data(batch_size=2), ckpt_path=resume)
        assert [step for step, _ in written] == [0, 0, 1, 1, 2, 2, 3, 3]
        assert len({when for step, when in written if step >= 2}) == 1  # not again in the middle of step 3

    @pytest.mark.parametrize("stop", [3, 4, 6], ids=["in mid-epoch", "at the end of an epoch", "in the second epoch"])
    def test_training_goes_on_from_last_as_if_it_had_never_stopped(
        self, stop: int, run: Run, make_module: Make, make_data: Make, make_trainer: Make, curves: Any
    ) -> None:
        def train(curves: Any, end: int | None, resume: Path | None) -> FinetuneModule:
            class Stop(pl.Callback):
                def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
                    if trainer.global_step == end:
                        raise RuntimeError("killed")

            module = make_module(LoRA(r=2, dropout=0.3, init="gaussian"), optimizer=adam)
            checkpoints = Checkpoints(run, CheckpointOptions(every_n_steps=1))
            trainer = make_trainer(max_epochs=3, limit_val_batches=1.0, logger=curves, callbacks=[checkpoints, Stop()])
            trainer.fit(module, make_data(), ckpt_path=resume)
            return module

        whole = train(curves, None, None)
        with pytest.raises(RuntimeError, match="killed"):
            train(type(curves)(), stop, None)
        resumed_curves = type(curves)()
        resumed = train(resumed_curves, None, run.last)
        for (name, weight), same in zip(whole.named_parameters(), resumed.parameters(), strict=True):
            assert torch.equal(weight, same), name
        last = max(curves.rows)
        assert resumed_curves.rows[last] == curves.rows[last]

    def test_best_loss_survives_an_interruption(
        self, run: Run, make_module: Make, make_data: Make, make_trainer: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def train(losses: list[float], epochs: int, resume: Path | None) -> None:
            module = make_module(LoRA(r=1))
            log = lambda: module.log("val_loss", losses[module.current_epoch])  # noqa: E731
            monkeypatch.setattr(module, "on_validation_epoch_end", log)
            trainer = make_trainer(max_epochs=epochs, limit_val_batches=1, callbacks=[Checkpoints(run)])
            trainer.fit(module, make_data(batch_size=8), ckpt_path=resume)

        train([1.0], 1, None)
        train([1.0, 2.0], 2, run.last)
        assert step_of(run.best) == 2
        assert step_of(run.last) == 4


class TestFrozenBase:
    class Vandal(pl.Callback):
        """Changes one bit of one frozen weight."""

        def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
            frozen = next(p for p in module.parameters() if not p.requires_grad)
            frozen.data.flatten().view(torch.uint8)[0] ^= 1

    @pytest.mark.parametrize(
        "method", [LoRA, QLoRA, lambda: QLoRA(kind="int8"), lambda: LoRA(init="pissa"), lambda: Full(["*norm*"])]
    )
    def test_training_leaves_it_alone(
        self, method: Callable[[], Method], make_module: Make, make_data: Make, make_trainer: Make
    ) -> None:
        watch = FrozenBase()
        module = make_module(method(), optimizer=adam)
        make_trainer(max_steps=3, limit_val_batches=1, val_check_interval=1, callbacks=[watch]).fit(module, make_data())
        assert watch.digest == f"cpu {fingerprint(frozen_tensors(module, module.trained_names()))}"

    def test_a_change_is_refused(self, make_module: Make, make_data: Make, make_trainer: Make) -> None:
        trainer = make_trainer(max_steps=1, callbacks=[FrozenBase(), self.Vandal()])
        with pytest.raises(UserError, match="the frozen base has changed"):
            trainer.fit(make_module(LoRA(r=1)), make_data())

    def test_after_a_change_there_is_nothing_to_go_on_from(
        self, run: Run, make_module: Make, make_data: Make, make_trainer: Make
    ) -> None:
        """Or the same command again would find the base as it was, and be content."""
        callbacks = [Checkpoints(run, CheckpointOptions(every_n_steps=1)), FrozenBase(run), self.Vandal()]
        with pytest.raises(UserError, match="the checkpoints, which do not hold these, are deleted"):
            make_trainer(max_steps=1, callbacks=callbacks).fit(make_module(LoRA(r=1)), make_data())
        assert not run.checkpoints.directory.exists()

    def test_another_base_under_the_same_path_is_refused(
        self, run: Run, make_module: Make, make_data: Make, make_trainer: Make
    ) -> None:
        def fit(callback: FrozenBase, module: pl.LightningModule) -> None:
            make_trainer(max_steps=1, callbacks=[callback]).fit(module, make_data())

        fit(FrozenBase(run), make_module(LoRA(r=1)))
        fit(FrozenBase(run), make_module(LoRA(r=1)))
        other = make_module(LoRA(r=1))
        other.pretrained = dataclasses.replace(other.pretrained, random_weights=True)
        with pytest.raises(UserError, match="not the one that"):
            fit(FrozenBase(run), other)
        with pytest.raises(UserError, match="not the one that"):
            make_trainer(callbacks=[FrozenBase(run)]).test(other, make_data(), verbose=False)

    def test_a_base_that_a_start_has_rewritten_depends_on_the_threads(
        self, run: Run, make_module: Make, make_data: Make, make_trainer: Make
    ) -> None:
        make_trainer(max_steps=1, callbacks=[FrozenBase(run)]).fit(make_module(LoRA(r=1, init="pissa")), make_data())
        run.note(frozen_base="cpu 0123456789abcdef")  # as it would be with other rounding
        with pytest.raises(UserError, match=r"start takes a part out of it.*OMP_NUM_THREADS was"):
            make_trainer(callbacks=[FrozenBase(run)]).test(
                make_module(LoRA(r=1, init="pissa")), make_data(), verbose=False
            )

    def test_what_is_trained_may_change(self, make_module: Make, make_data: Make, make_trainer: Make) -> None:
        module = make_module(Full(["*norm*"]), optimizer=adam)
        make_trainer(max_steps=2, callbacks=[FrozenBase()]).fit(module, make_data())  # which is not refused
        before = dict(module.pretrained.model().named_parameters())
        changed = {name for name, now in module.network.named_parameters() if not torch.equal(now, before[name])}
        assert changed
        assert all("norm" in name for name in changed)


class TestModelWriter:
    def test_writes_the_best_weights_and_the_tokenizer(
        self, run: Run, make_module: Make, make_data: Make, make_trainer: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        losses = [1.0, 2.0, 3.0]  # the first epoch is the best
        module = make_module(LoRA(r=2), optimizer=adam)
        monkeypatch.setattr(
            module, "on_validation_epoch_end", lambda: module.log("val_loss", losses[module.current_epoch])
        )
        trainer = make_trainer(max_epochs=3, limit_val_batches=1, callbacks=[Checkpoints(run), ModelWriter(run)])
        trainer.fit(module, make_data())
        best = torch.load(run.best, weights_only=True)
        assert best["global_step"] == 4
        opened = AutoPeftModelForCausalLM.from_pretrained(run.model)
        weights = dict(opened.named_parameters())
        for name, tensor in best["state_dict"].items():
            assert torch.equal(weights[name.removeprefix("network.")], tensor)
        tokenizer = AutoTokenizer.from_pretrained(run.model)
        assert tokenizer("Zeno")["input_ids"] == module.pretrained.tokenizer()("Zeno")["input_ids"]
        assert [path.name for path in run.directory.iterdir() if path.name.startswith(".")] == []

    def test_without_a_best_checkpoint_writes_the_last_weights(
        self, run: Run, make_module: Make, make_data: Make, make_trainer: Make, network: Network
    ) -> None:
        module = make_module(Full())
        make_trainer(max_steps=2, callbacks=[ModelWriter(run)]).fit(module, make_data())
        opened = AutoModelForCausalLM.from_pretrained(run.model)
        for (name, weight), same in zip(module.network.named_parameters(), opened.parameters(), strict=True):
            assert torch.equal(weight, same), name
        assert opened.config.use_cache == AutoModelForCausalLM.from_pretrained(network.path).config.use_cache

    def test_a_failing_save_leaves_the_model_that_was_there(
        self, run: Run, make_module: Make, make_data: Make, make_trainer: Make
    ) -> None:
        module = make_module(LoRA(r=1))
        make_trainer(max_steps=1, callbacks=[ModelWriter(run)]).fit(module, make_data())
        before = {path.name: path.read_bytes() for path in run.model.iterdir()}

        class FullDisk(LoRA):
            def save(self, network: Any, directory: Path) -> None:
                super().save(network, directory)
                raise OSError("no space left on device")

        module.method = FullDisk(r=1)
        with pytest.raises(OSError, match="no space"):
            ModelWriter(run).write(module)
        assert {path.name: path.read_bytes() for path in run.model.iterdir()} == before


class TestThroughput:
    def test_counts_tokens(self, make_module: Make, make_data: Make, make_trainer: Make, curves: Any) -> None:
        data, throughput = make_data(batch_size=4), Throughput()
        make_trainer(max_epochs=2, accumulate_grad_batches=2, logger=curves, callbacks=[throughput]).fit(
            make_module(LoRA(r=1)), data
        )
        rows = data.rows("train")
        total = sum(len(row.input_ids) for row in rows)
        supervised = sum(label != -100 for row in rows for label in row.labels)
        assert (throughput.total, throughput.supervised) == (2 * total, 2 * supervised)
        assert curves.curve("total_tokens")[1::2] == [total, 2 * total]  # two steps an epoch
        assert curves.curve("supervised_tokens")[1::2] == [supervised, 2 * supervised]
        assert all(rate > 0 for rate in curves.curve("tokens_per_second"))
        assert all(2**20 < peak < 2**40 for peak in curves.curve("peak_memory"))

    def test_rate_leaves_validation_out(
        self, make_module: Make, make_data: Make, make_trainer: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock, throughput = Clock(on_train_batch_start=2.0, on_validation_start=100.0), Throughput()
        monkeypatch.setattr("ftlab.callbacks.throughput.time.perf_counter", clock)
        make_trainer(max_epochs=2, limit_val_batches=1, val_check_interval=2, callbacks=[clock, throughput]).fit(
            make_module(LoRA(r=1)), make_data(batch_size=4)
        )
        assert throughput.seconds == 8 * 2.0

    def test_counts_go_on_after_an_interruption(
        self, run: Run, make_module: Make, make_data: Make, make_trainer: Make
    ) -> None:
        data, throughput = make_data(batch_size=4), Throughput()
        make_trainer(max_epochs=1, callbacks=[Checkpoints(run), Throughput()]).fit(make_module(LoRA(r=1)), data)
        make_trainer(max_epochs=2, callbacks=[Checkpoints(run), throughput]).fit(
            make_module(LoRA(r=1)), make_data(batch_size=4), ckpt_path=run.last
        )
        assert throughput.total == 2 * sum(len(row.input_ids) for row in data.rows("train"))

    def test_what_comes_before_training_goes_on_in_mid_epoch_is_no_training(
        self, run: Run, make_module: Make, make_data: Make, make_trainer: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock(on_fit_start=100.0, on_train_batch_start=2.0)  # data and network are opened before
        monkeypatch.setattr("ftlab.callbacks.throughput.time.perf_counter", clock)
        for steps in (1, 3):  # of 4 in an epoch
            throughput = Throughput()
            trainer = make_trainer(
                max_epochs=-1, max_steps=steps, callbacks=[clock, throughput, Checkpoints(run, CheckpointOptions(1))]
            )
            resume = run.last if run.last.is_file() else None
            trainer.fit(make_module(LoRA(r=1)), make_data(batch_size=4), ckpt_path=resume)
        assert throughput.seconds == 3 * 2.0
