"""The scripts, against files read through by hand: FTLAB_WRITE_GOLDEN=1 writes them anew, to be read again."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ftlab.cluster import Profile, Task, array_script, script
from ftlab.errors import UserError

GOLDEN = Path(__file__).parent / "golden"
EVERYTHING = Profile(
    partition="gpu",
    account="lab",
    qos="high",
    gpus="a100:2",
    cpus=6,
    memory="64G",
    time="2-00:00:00",
    constraint="a100&nvlink",
    after=12,
    lead_seconds=300,
    modules=["cuda/12.8"],
    container="apptainer exec --nv 'my image.sif'",
    environment={"NCCL_DEBUG": "INFO", "TEXT": "it's"},
    setup=["ulimit -n 65536"],
    options=["--exclude=n13"],
)
SCRIPTS = {
    "single_node": lambda: script(task(), Profile(python="python"), ["fit", "-c", "my experiment.yaml"]),
    "several_nodes": lambda: script(task(nodes=2, processes=2), EVERYTHING, ["fit", "-c", "e.yaml"]),
    "array_of_commands": lambda: array_script(
        task(checkpoint=None), Profile(python="python"), [["fit", "-c", "a.yaml"], ["fit", "-c", "b c.yaml"]]
    ),
    "array_of_workers": lambda: array_script(
        task(checkpoint=None), Profile(python="python"), [["sweep", "work", "DIR"]] * 3, at_once=2
    ),
}


def task(**said: Any) -> Task:
    run = Path.cwd() / "runs/e/r"
    said = {"environment": (("FTLAB_SUBMITTED", "12ab"),), "checkpoint": run / "checkpoints/last.ckpt"} | said
    return Task("ftlab-e-r", f"ftlab:{run}", run / "slurm", **said)


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts(name: str, tmp_path: Path) -> None:
    made = SCRIPTS[name]()
    assert subprocess.run(["bash", "-n"], input=made, text=True, check=False).returncode == 0
    file = GOLDEN / f"{name}.sh"
    if os.environ.get("FTLAB_WRITE_GOLDEN"):
        file.write_text(made.replace(str(tmp_path), "HERE"))
    assert made.replace(str(tmp_path), "HERE") == file.read_text()


def test_odd_names_of_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / 'a "b" 50%'
    odd.mkdir()
    monkeypatch.chdir(odd)
    lines = SCRIPTS["single_node"]().splitlines()
    assert f'#SBATCH --chdir="{tmp_path}/a \\"b\\" 50%"' in lines
    assert f'#SBATCH --output="{tmp_path}/a \\"b\\" 50%%/runs/e/r/slurm/%j.out"' in lines
    assert f"export FTLAB_STOPPED='{odd}/runs/e/r/slurm'/$SLURM_JOB_ID.stopped" in lines


def test_a_template_of_the_working_directory_stands_in_for_the_one_that_ships() -> None:
    Path("slurm").mkdir()
    Path("slurm/end.sh.j2").write_text("echo the end of {{ task.name }}\n")
    made = SCRIPTS["single_node"]()
    assert made.splitlines()[-1] == "echo the end of ftlab-e-r"
    assert "#SBATCH --requeue" in made


@pytest.mark.parametrize("text", ["{{ nothing }}", "{% if %}"])
def test_a_broken_template(text: str) -> None:
    Path("slurm").mkdir()
    Path("slurm/end.sh.j2").write_text(text)
    with pytest.raises(UserError, match=r"slurm/.* cannot be filled \(.*\): mend the template"):
        SCRIPTS["single_node"]()


@pytest.mark.parametrize(
    ("command", "code", "note"),
    [
        ("exit 0", 0, False),
        ("exit 75", 0, True),
        ("exit 3", 3, False),
        ("kill -TERM $PPID; sleep 0.2; kill -TERM $$", 0, True),  # told before it could listen
        ("kill -TERM $$", 143, False),  # killed, and not told
        ("kill -USR1 $PPID; sleep 0.2; exit 1", 1, False),
        ("kill -USR1 $PPID; sleep 0.2; exit 0", 0, False),  # it had come to its end
    ],
)
def test_how_a_process_ends(tmp_path: Path, command: str, code: int, note: bool) -> None:
    start = SCRIPTS["single_node"]().partition("one_process='")[2].partition("'\n")[0]
    stopped = tmp_path / "stopped"
    words = ["bash", "-c", start, "ftlab", "bash", "-c", command]
    done = subprocess.run(words, env=os.environ | {"FTLAB_STOPPED": str(stopped)}, check=False)
    assert (done.returncode, stopped.exists()) == (code, note)


def test_a_job_that_never_saves_is_given_up(tmp_path: Path) -> None:
    """The end of the script, with commands of SLURM that say what they are called for."""
    for name, said in {"squeue": "echo RUNNING", "scontrol": f"echo $* >>{tmp_path}/requeued; exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{said}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "runs/e/r/slurm").mkdir(parents=True)
    last = tmp_path / "runs/e/r/checkpoints/last.ckpt"
    last.parent.mkdir()
    start, _, rest = SCRIPTS["single_node"]().partition("\n# srun does not take")
    end = rest.partition("code=$?\n")[2]

    def stopped(save: str = ":") -> str:
        middle = f'\n: >"$FTLAB_STOPPED"; {save}; code=0\n'
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "12"}
        done = subprocess.run(["bash"], input=start + middle + end, capture_output=True, text=True, env=environment)
        assert done.returncode == 75
        return done.stderr

    assert [stopped(), stopped(), stopped(f"ln -s last-1.ckpt {last}"), stopped(), stopped()] == [""] * 5
    assert stopped() == (
        "ftlab: stopped three times before anything was saved: give the job more time, or less lead_seconds\n"
    )
    assert (tmp_path / "requeued").read_text() == "requeue 12\n" * 5
