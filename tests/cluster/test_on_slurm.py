"""`ftlab fit … --on slurm` up to where SLURM is asked, and what it refuses: one sentence, nothing left."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from job_watching import Answer, write_profile

from ftlab.cli.experiment import Experiment
from ftlab.data import FinetuneData
from ftlab.networks import Network

FIT = ("fit", "-c", "tiny.yaml")


@pytest.fixture
def refused(ftlab: Callable[..., Answer], workplace: Path) -> Callable[..., str]:
    """Gives a command that must be refused: 1, one sentence, nothing left. Returns the sentence."""

    def command(*words: object) -> str:
        before = sorted(workplace.rglob("*"))
        answer = ftlab(*words)
        assert (answer.code, answer.out) == (1, "")
        assert answer.err.startswith("ftlab: ")
        assert answer.err.count("\n") == 1, answer.err
        assert sorted(workplace.rglob("*")) == before
        return answer.err.removeprefix("ftlab: ").rstrip("\n")

    return command


def dry(ftlab: Callable[..., Answer], *words: object) -> list[str]:
    answer = ftlab(*FIT, *words, "--on", "slurm", "--dry-run")
    assert (answer.code, answer.err) == (0, "")
    assert not Path("runs").exists()
    return answer.out.splitlines()


def test_the_same_command_is_run_and_nothing_opened(
    ftlab: Callable[..., Answer], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = Experiment(FIT[1:]).run.directory.resolve()
    for owner, part in ((Network, "model"), (Network, "tokenizer"), (FinetuneData, "setup")):
        monkeypatch.setattr(owner, part, lambda *_: pytest.fail("the login node has no memory for it"))
    shutil.rmtree("runs", ignore_errors=True)
    lines = dry(ftlab)
    assert any(line.endswith("-m ftlab fit -c tiny.yaml") for line in lines)
    assert f"#SBATCH --comment=ftlab:{name}" in lines
    assert {"#SBATCH --nodes=1", "#SBATCH --ntasks-per-node=1"} <= set(lines)
    assert not any("--ntasks=" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "nodes", "processes"),
    [
        ([], 1, 1),
        (["--trainer.devices", "auto"], 1, 1),
        (["--trainer.devices", "2", "--trainer.num_nodes", "2"], 2, 2),
        (["--trainer.accelerator", "gpu"], 1, 4),
        (["--trainer.accelerator", "auto"], 1, 4),
        (["--trainer.accelerator", "gpu", "--trainer.devices", "4"], 1, 4),
        (["--trainer.accelerator", "gpu", "--trainer.devices", "[0,1,2,3]"], 1, 4),
        (["--trainer.accelerator", "gpu", "--trainer.devices=-1"], 1, 4),
    ],
)
def test_one_process_a_device(
    ftlab: Callable[..., Answer], workplace: Path, words: list[str], nodes: int, processes: int
) -> None:
    write_profile(gpus=4)
    lines = dry(ftlab, *words)
    assert {f"#SBATCH --nodes={nodes}", f"#SBATCH --ntasks-per-node={processes}"} <= set(lines)
    assert any("MASTER_ADDR" in line for line in lines) is (nodes > 1)


def test_devices_that_do_not_fit(refused: Callable[..., str]) -> None:
    write_profile(gpus=4)
    gpu = ("--on=slurm", "--trainer.accelerator", "gpu")
    assert refused(*FIT, *gpu, "--trainer.devices", "2") == (
        "slurm/profiles/default.yaml has gpus: 4, and trainer.devices is 2: give --trainer.devices 4, or a profile "
        "with gpus: 2 (--on slurm:PROFILE)"
    )
    write_profile(gpus=0)
    assert refused(*FIT, *gpu) == (
        "slurm/profiles/default.yaml has gpus: 0, and trainer.accelerator is gpu: give a profile with GPUs "
        "(--on slurm:PROFILE), or --trainer.accelerator cpu"
    )
    assert refused(*FIT, *gpu, "--trainer.num_nodes", "0") == "trainer.num_nodes is 0: give a number from 1 on"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--on", "elsewhere"], "--on is 'elsewhere': it must be slurm, or slurm: and the name of a profile"),
        (["--on", "slurm:"], "--on is 'slurm:': it must be slurm, or slurm: and the name of a profile"),
        (["--on"], "--on needs a value after it"),
        (["--dry-run"], "--dry-run says something of a job: give --on slurm, too"),
        (["--after", "3"], "--after says something of a job: give --on slurm, too"),
        (
            ["--on", "slurm:fast"],
            "there is no profile slurm/profiles/fast.yaml: there are cpu, default, gpu8",
        ),
        (
            ["--on", "slurm", "--trainer.max_stps", "3"],
            "there is no key trainer.max_stps: did you mean trainer.max_steps?",
        ),
        (["--on", "slurm", "--run.signals", "[USR1]"], None),
        # values of the right type that only a class refuses
        (["--on", "slurm", "--model.method.r", "0"], "method.r is 0: a rank is at least 1"),
        (
            ["--on", "slurm", "--model.method.dropout", "2"],
            "method: lora_dropout is 2.0: it is a share, from 0 to below 1",
        ),
        (["--on", "slurm", "--data.batch_size", "0"], "data.batch_size is 0; give 1 or more"),
        (["--on", "slurm", "--model.optimizer.lr=-1"], "model.optimizer: Invalid learning rate: -1.0"),
        (
            ["--on", "slurm", "--trainer.accumulate_grad_batches", "0"],
            "trainer.accumulate_grad_batches is 0: give 1 or more",
        ),
        (["--on", "slurm", "--trainer.max_steps=-5", "--trainer.accelerator", "gpu"], None),
        (["--on", "slurm", "--trainer.max_steps=-1"], None),
        (["--on", "slurm", "--trainer.precision", "16-mixed"], None),
    ],
)
def test_commands_that_make_no_sense(refused: Callable[..., str], words: list[str], sentence: str | None) -> None:
    said = refused(*FIT, *words)
    assert sentence is None or said == sentence


def test_a_misspelt_key_of_a_profile(refused: Callable[..., str]) -> None:
    write_profile(partitoin="gpu")
    said = "slurm/profiles/default.yaml: there is no key partitoin: did you mean partition?"
    assert refused(*FIT, "--on", "slurm") == said


def test_no_slurm(refused: Callable[..., str], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(workplace))
    assert refused(*FIT, "--on", "slurm") == (
        "there is no SLURM on this machine (sbatch is not found): give the command where jobs are submitted from, or "
        "leave out --on slurm"
    )


def test_a_directory_that_holds_something_else(refused: Callable[..., str]) -> None:
    Path("runs/tiny/mine").mkdir(parents=True)
    Path("runs/tiny/mine/notes.txt").touch()
    assert "is not empty and holds no run" in refused(*FIT, "--run.name", "mine", "--on", "slurm")


def test_a_job_trains_what_was_submitted(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTLAB_SUBMITTED", "0123abcd")
    assert refused(*FIT).startswith("the configuration is not the one that was submitted (it was 0123abcd, it is ")


def test_logs_of_a_job_are_no_foreign_run(ftlab: Callable[..., Answer], workplace: Path) -> None:
    logs = Path("runs/tiny/mine/slurm")
    logs.mkdir(parents=True)
    (logs / "1.out").write_text("why\n")
    answer = ftlab(*FIT, "--run.name", "mine", "--data.path", "nowhere.jsonl")
    assert answer.code == 1
    assert sorted(logs.parent.rglob("*")) == [logs, logs / "1.out"]


def test_lightning_leaves_signals_alone_under_slurm(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"NTASKS": "1", "NTASKS_PER_NODE": "1", "NNODES": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in {**there, "JOB_ID": "12", "JOB_NAME": "ftlab-tiny-r"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    environment = Experiment(FIT[1:]).trainer._accelerator_connector.cluster_environment
    assert type(environment).__name__ == "SLURMEnvironment"
    assert environment.auto_requeue is False  # type: ignore[attr-defined]


def test_help_tells_of_it(ftlab: Callable[..., Answer]) -> None:
    said = " ".join(ftlab("fit", "--help").out.split())
    assert "--on slurm:PROFILE" in said
    assert "--dry-run" in said
