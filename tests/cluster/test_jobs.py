"""Runs as jobs of a real SLURM: trained, preempted, failed, cancelled, waiting for one another, submitted twice."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from job_watching import Answer, log, slurm, state, submitted, wait, wait_for_state
from private_cluster import PrivateCluster

from ftlab.cli import main

pytestmark = pytest.mark.slurm

RUN = Path("runs/tiny/job")
SLOW = """
import time
from pathlib import Path
from ftlab.methods import LoRA

class Slow(LoRA):
    def penalty(self, network):
        time.sleep(0.3 if Path("slow").exists() else 0)
"""


def words(*options: object, name: str = RUN.name) -> list[object]:
    """A run of 30 steps, each of which is saved, and takes long while there is a file `slow`."""
    said = {
        "--run.name": name,
        "--trainer.max_steps": 30,
        "--trainer.val_check_interval": 10,
        "--run.checkpoints.every_n_steps": 1,
        "--model.method": "slow.Slow",
        "--model.method.dropout": 0.2,
    }
    return ["fit", "-c", "tiny.yaml", *(word for pair in said.items() for word in pair), *options]


def weights(run: Path = RUN) -> dict[str, str]:
    """The digests of the files of the final model."""
    record = json.loads((run / "provenance.json").read_text())
    assert record["state"] == "finished"
    return record["model"]


def sessions(run: Path = RUN) -> list[str]:
    return [each["state"] for each in json.loads((run / "provenance.json").read_text())["sessions"]]


def when_trained(step: int) -> None:
    """Waits until a checkpoint of `step` or later is there."""
    wait(
        lambda: any(int(path.name.split("-")[1]) >= step for path in RUN.glob("checkpoints/last-*.ckpt")),
        lambda: f"{state(submitted(RUN))}\n{log(RUN)}",
    )


@pytest.fixture
def place(workplace: Path, cluster: PrivateCluster) -> Path:
    (workplace / "slow.py").write_text(SLOW)
    return workplace


@pytest.fixture
def undisturbed(place: Path) -> Callable[..., dict[str, str]]:
    """The weights of the same run in this process, which nothing stops."""

    def make(*options: object) -> dict[str, str]:
        assert main([str(word) for word in words(*options, name="whole")]) == 0
        return weights(RUN.with_name("whole"))

    return make


def test_a_job_trains_as_a_process_does_and_is_submitted_once(
    undisturbed: Callable[..., dict[str, str]], ftlab: Callable[..., Answer]
) -> None:
    first = ftlab(*words("--on", "slurm"))
    job = submitted(RUN)
    assert (first.code, first.out) == (0, "")
    assert first.err.startswith(f"ftlab: job {job} is submitted for {RUN}")
    (RUN / "slurm/job.json").unlink()  # as where the launcher was killed before it had noted the job
    again = ftlab(*words("--on=slurm"))
    assert again.code == 0
    assert f"job {job} is there for {RUN} already" in again.err
    assert submitted(RUN) == job
    wait_for_state(RUN, "COMPLETED", "FAILED")
    assert state(job) == "COMPLETED", log(RUN)
    assert weights() == undisturbed()
    over = ftlab(*words("--on", "slurm"))
    assert (over.code, over.err) == (0, f"ftlab: {RUN} has finished; another --run.name repeats it\n")
    assert slurm("squeue", "-h", "-t", "all", "-o%k").splitlines().count(f"ftlab:{RUN.resolve()}") == 1


def test_a_node_fails(
    undisturbed: Callable[..., dict[str, str]], ftlab: Callable[..., Answer], cluster: PrivateCluster
) -> None:
    Path("slow").touch()
    assert ftlab(*words("--on", "slurm")).code == 0
    when_trained(5)
    job = submitted(RUN)
    cluster.control("update", f"nodename={slurm('squeue', '-h', '-j', job, '-o%N')}", "state=down", "reason=test")
    wait(lambda: state(job) != "RUNNING", lambda: log(RUN))
    Path("slow").unlink()
    assert wait_for_state(RUN, "COMPLETED", "FAILED", "NODE_FAIL") == "COMPLETED", log(RUN)
    assert sessions() == ["killed", "finished"] or sessions() == ["preempted", "finished"]
    assert weights() == undisturbed()
