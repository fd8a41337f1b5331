"""An experiment, from the command line: LightningCLI with a run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import lightning.pytorch as pl
import torch
import transformers
import yaml
from jsonargparse import ArgumentError
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from ftlab.callbacks import (
    Checkpoints,
    Companions,
    FirstStep,
    FrozenBase,
    MetricsCSV,
    ModelWriter,
    NonfiniteSteps,
    Preemption,
    SampleAnswers,
    StepProfile,
    Throughput,
    TrainingBar,
    Whereabouts,
)
from ftlab.cli import HARNESS, ON_SLURM, SCORES, VERBS
from ftlab.cli.compose import config_files, expand, experiment_name, read_config
from ftlab.cli.open_choices import choose_checkpointing, split_batches
from ftlab.cli.plugins import with_methods
from ftlab.cli.sentences import sentence
from ftlab.cli.wandb import WandbOptions, logger_of, open_session
from ftlab.cli.wandb_results import tell_samples
from ftlab.console import draws_bars
from ftlab.data import FinetuneData
from ftlab.errors import UserError, one_line
from ftlab.modules import FinetuneModule
from ftlab.modules.activations import GradientCheckpointing
from ftlab.networks import Network
from ftlab.runs import Run, RunOptions, Seeds, short_hash

_MORE = {"fit": f".\n\n{ON_SLURM}", "validate": f".\n\n{SCORES}", "test": f".\n\n{HARNESS}. {SCORES}"}


class Experiment(LightningCLI):
    """A resolved configuration, with its run directory, module, data and trainer.

    Args:
        arguments: What follows the verb on the command line.
        verb: For the help.
    """

    model: FinetuneModule
    datamodule: FinetuneData

    session: Any = None
    """W&B's run, while it is trained."""

    def __init__(self, arguments: Sequence[str], verb: str = "fit") -> None:
        transformers.utils.logging.disable_progress_bar()  # bars of milliseconds at every network that is opened
        self.files = config_files(arguments)
        try:
            with _arguments(with_methods(expand(arguments))), trainer_refusals():
                super().__init__(
                    FinetuneModule,
                    FinetuneData,
                    save_config_callback=None,
                    seed_everything_default=42,
                    parser_kwargs={
                        "prog": f"ftlab {verb}",
                        "description": VERBS[verb] + _MORE.get(verb, ""),
                        "exit_on_error": False,
                        "allow_abbrev": False,
                    },
                    run=False,
                    auto_configure_optimizers=False,
                    load_from_checkpoint_support=False,
                )
        except (ArgumentError, ValueError, TypeError) as error:  # the last two from classes that were configured
            raise UserError(sentence(error, self.parser)) from error

    @classmethod
    def of_run(cls, directory: Path) -> Experiment:
        """The experiment that a run directory holds.

        Raises:
            UserError: There is no run.
        """
        if not (directory / "config.yaml").is_file():
            raise UserError(f"there is no run at {directory}: it has no config.yaml")
        return cls(["-c", str(directory / "config.yaml")])

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Where the run is kept and logged; the seeds, and one network for module and data."""
        _take_whole_numbers_as_such(parser)
        parser.add_argument("--run", type=RunOptions, default=RunOptions())
        parser.add_argument("--wandb", type=WandbOptions, default=WandbOptions())
        parser.add_argument("--seeds", type=Seeds, default=Seeds())
        for name, target in {"order": "data.seed", "weights": "model.seed", "dropout": "model.dropout_seed"}.items():
            parser.link_arguments(("seeds", "seed_everything"), target, _seed_of(name))
        for field in dataclasses.fields(Network):
            parser.link_arguments(f"model.network.{field.name}", f"data.network.{field.name}")

    def before_instantiate_classes(self) -> None:
        """Finds the run directory: named, or by the hash of the configuration."""
        if isinstance(self.config.seed_everything, bool):
            raise UserError("seed_everything is a whole number: a seed that is drawn is another run each time")
        Seeds(**vars(self.config.seeds))  # refuses what data and module would refuse by other names
        choose_checkpointing(self.config, self.first_way)
        split_batches(self.config, self.largest_micro_batch)
        options = self.config.run
        own = next((file for file in self.files if (file.parent / "provenance.json").is_file()), None)
        if own is not None:
            self._follow_the_run(own)
        options.experiment = options.experiment or experiment_name(self.files, "run")
        options.name = options.name or short_hash(self.resolved())
        self.run = Run(Path(options.root) / options.experiment / options.name)

    def largest_micro_batch(self) -> int:
        """Rows that the device takes at once, by plan.

        Raises:
            UserError: Not even one.
        """
        from ftlab.cli.by_plan import largest  # which makes another experiment of this configuration

        return largest(self.resolved())

    def first_way(self) -> GradientCheckpointing:
        """What is computed again so that a micro-batch fits the device, by plan.

        Raises:
            UserError: It does not fit.
        """
        from ftlab.cli.by_plan import first_way

        return first_way(self.resolved())

    def _follow_the_run(self, own: Path) -> None:
        """Takes the place of a run from where its configuration lies: the directory may have been moved."""
        options, written = self.config.run, read_config(own)["run"]
        place = own.resolve().parent if own.parent.name in ("", "..") else own.parent
        here = {"root": str(place.parent.parent), "experiment": place.parent.name, "name": place.name}
        for key, value in here.items():
            if options[key] == written[key]:  # otherwise it is said on the command line
                options[key] = value

    def resolved(self) -> dict[str, Any]:
        """The whole configuration as plain data, links left out."""
        return yaml.safe_load(self.parser.dump(self.config, skip_unset=False))

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer with what every run has: its directory, its loggers and callbacks."""
        config = self.config_init["trainer"]
        _refuse_what_lightning_takes(config)
        self.curves = MetricsCSV(self.run)
        self.checkpoints = Checkpoints(self.run, self.config_init["run"].checkpoints)
        self.preemption = Preemption(self.checkpoints, self.config_init["run"])
        self.throughput = Throughput()
        self.whereabouts = Whereabouts()
        callbacks = [
            self.whereabouts,
            self.curves,
            NonfiniteSteps(self.run),
            self.throughput,
            FirstStep(self.run),
            FrozenBase(self.run),
            self.preemption,
            self.checkpoints,
            ModelWriter(self.run),
            Companions(self.run),
        ]
        if config["enable_progress_bar"] is not False and draws_bars(sys.stderr):
            callbacks.insert(0, TrainingBar())  # gone before others draw one at the end
        else:
            config["enable_progress_bar"] = False  # or Lightning would take a bar of its own
        config["enable_model_summary"] = bool(config["enable_model_summary"])  # it would go to stdout
        config["callbacks"] = [*(config["callbacks"] or []), *callbacks]
        if self.config_init["run"].profile:
            profiled = StepProfile(self.run)
            config["callbacks"] = [profiled, *config["callbacks"], profiled.last]
        config["plugins"] = _with_slurm(config["plugins"])
        own = [] if isinstance(config["logger"], bool | None) else config["logger"]
        loggers = [self.curves, *(own if isinstance(own, list) else [own])]
        return super().instantiate_trainer(
            default_root_dir=str(self.run.directory), logger=loggers, use_distributed_sampler=False, **kwargs
        )

    def log_to_wandb(self) -> None:
        """Adds W&B to the loggers of a training."""
        options = self.config_init["wandb"]
        if self.trainer.is_global_zero and (session := open_session(options, self.run, self.resolved())):
            self.session = session
            self.trainer.loggers = [*self.trainer.loggers, logger_of(session)]
            if options.samples:
                samples = SampleAnswers(options.samples, partial(tell_samples, session))
                # before the one that takes the time of training, which goes on when validation has ended
                self.trainer.callbacks.insert(0, samples)  # type: ignore[attr-defined]

    def instantiate_classes(self) -> None:
        """As in Lightning; the data then knows how long answers get."""
        super().instantiate_classes()
        self.datamodule.room = self.model.decoding.max_new_tokens

    def refuse_endless(self) -> None:
        """Refuses training without an end.

        Raises:
            UserError: Nothing says when it ends.
        """
        ends = self.config.trainer
        if self.model.method.trains and ends.max_epochs is None and ends.max_steps == -1:
            raise UserError("trainer: nothing says when training ends; give trainer.max_epochs or trainer.max_steps")

    def trained_checkpoint(self) -> str | None:
        """The weights to judge; None for a method that trains nothing.

        Raises:
            UserError: There is no such run, or it has no checkpoint yet.
        """
        if not self.run.config.is_file():
            raise UserError(f"there is no run at {self.run.directory}: run ftlab fit first, or give -c RUN/config.yaml")
        if not self.model.method.trains:
            return None
        checkpoint = self.run.checkpoints.to_judge()
        if checkpoint is None:
            raise UserError(f"{self.run.directory} has no checkpoint yet: let ftlab fit come to its first one")
        return str(checkpoint)

    def checkpoint_to_go_on_from(self) -> str | None:
        """The last whole checkpoint of training that was interrupted; None where it starts."""
        whole, damaged = self.run.checkpoints.to_go_on_from()
        if self.trainer.is_global_zero:
            for path in damaged:
                print(f"ftlab: {path} is damaged, and the one before is taken", file=sys.stderr)
            self.run.checkpoints.set_aside(damaged)
        return str(whole) if whole else None

    def open_saved(self, directory: Path, device: torch.device | str = "cpu") -> nn.Module:
        """The network with what the method saved in `directory`, on `device`, in evaluation mode."""
        base = self.model.pretrained.model(self.model.method.quantization, device)
        network = self.model.method.load(base, directory).eval()
        return network if self.model.method.quantization else network.to(device)

    def open_trained(self, device: torch.device | str = "cpu") -> nn.Module:
        """The network as the run saved it under `model/`, in evaluation mode.

        Raises:
            UserError: Training has not come to its end, or the files are not as the run wrote them.
        """
        return self.open_saved(self.run.saved_model(), device)


def _take_whole_numbers_as_such(parser: LightningArgumentParser) -> None:
    """Has `limit_val_batches: 1` stay one batch, which as 1.0 would be all of them.

    Of Optional[Union[int, float]] typing hands out whatever order of the two somebody in this process has written
    first, and jsonargparse tries the types in their order.
    """
    actions: list[Any] = parser._actions
    for action in actions:
        hint = getattr(action, "_typehint", None)
        kinds = get_args(hint) if get_origin(hint) is Union else ()
        if int in kinds and float in kinds:
            others = (kind for kind in kinds if kind not in (int, float))  # str among them, which takes any number
            action._typehint = Union[(int, float, *others)]


def _refuse_what_lightning_takes(config: Any) -> None:
    """Values of the trainer that come to an error in the middle of a step, or turn the gradient round."""
    if (batches := config["accumulate_grad_batches"]) < 1:
        raise UserError(f"trainer.accumulate_grad_batches is {batches}: give 1 or more")
    limit = config["gradient_clip_val"]
    if limit is not None and limit < 0:
        raise UserError(f"trainer.gradient_clip_val is {limit}: give 0, which clips nothing, or more")


def _with_slurm(plugins: Any) -> Any:
    """The trainer's plugins, under SLURM with one that leaves signals to Preemption: Lightning's own handlers would
    save within a step, and put the job back into the queue themselves."""
    own = plugins if isinstance(plugins, list) else [plugins] if plugins else []
    chosen = any(isinstance(plugin, ClusterEnvironment) for plugin in own)
    if chosen or TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return plugins
    return [*own, SLURMEnvironment(auto_requeue=False)]


def _seed_of(name: str) -> Callable[[Any, int], int]:
    def seed(seeds: Any, otherwise: int) -> int:
        own = getattr(seeds, name)
        return otherwise if own is None else own

    return seed


@contextlib.contextmanager
def trainer_refusals() -> Iterator[None]:
    """What Lightning refuses in the trainer's configuration, as one sentence."""
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"trainer: {one_line(error)}") from error
    except ValueError as error:
        if "lightning" not in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts:
            raise
        raise UserError(f"trainer: {one_line(error)}") from error


@contextlib.contextmanager
def _arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Has LightningCLI read these: it warns of arguments given from Python beside those of the process."""
    before, sys.argv = sys.argv, ["ftlab", *arguments]
    try:
        yield
    finally:
        sys.argv = before
