"""The words that run a trial: as `wandb agent` makes them from the same file."""

import sys
from pathlib import Path

import pytest
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from ftlab.errors import UserError
from ftlab.sweeps.commands import name_of_run, resolved_command, trial_command


@pytest.mark.parametrize("macro", ["args", "args_no_hyphens", "args_no_boolean_flags", "args_json"])
def test_parameters_are_written_as_wandb_writes_them(macro: str) -> None:
    parameters = {"config": "a.yaml", "model.optimizer.lr": 1e-05, "model.method.r": 8, "name": "x"}
    if macro == "args_no_boolean_flags":
        parameters |= {"yes": True, "no": False}
    theirs = create_sweep_command_args({"args": {name: {"value": value} for name, value in parameters.items()}})
    assert trial_command(["run", f"${{{macro}}}"], parameters) == ["run", *theirs[macro]]


def test_files_of_configuration_come_first_and_may_be_several() -> None:
    words = trial_command(["run", "${args}"], {"r": 4, "config": ["a.yaml", "b.yaml"]}, ["--last"])
    assert words == ["run", "--config=a.yaml", "--config=b.yaml", "--r=4", "--last"]


def test_what_does_not_depend_on_the_trial_is_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHERE", "here")
    Path("sweeps").mkdir()
    for name in ("sweeps/beside.yaml", "below.yaml"):
        Path(name).touch()
    command = ["${env}", "${interpreter}", "-m", "ftlab", "fit", "-c", "beside.yaml", "--config=below.yaml"]
    words = resolved_command([*command, "${envvar:WHERE}", "${args}"], Path("sweeps/x.yaml"))
    files = [str(tmp_path / "sweeps/beside.yaml"), f"--config={tmp_path / 'below.yaml'}"]
    assert words == [sys.executable, "-m", "ftlab", "fit", "-c", *files, "here", "${args}"]
    assert resolved_command(["ftlab", "fit"], Path("x.yaml")) == [sys.executable, "-m", "ftlab", "fit"]
    assert resolved_command(["python", "-c", "pass"], Path("x.yaml")) == [sys.executable, "-c", "pass"]
    with pytest.raises(UserError, match="neither beside it nor in"):
        resolved_command(["ftlab", "fit", "-c", "nowhere.yaml"], Path("x.yaml"))


def test_a_run_is_named_by_what_it_runs() -> None:
    names = {name_of_run(command, {"x": x}) for command in (["a"], ["b"]) for x in (1, 2)}
    assert len(names) == 4
    assert name_of_run(["a"], {"x": 1, "y": 2}) == name_of_run(["a"], {"y": 2, "x": 1})
