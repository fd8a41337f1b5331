"""Runs as jobs of a real SLURM: trained, preempted, failed, cancelled, waiting for one another, submitted twice."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from job_watching import Answer, log, slurm, state, states, submitted, wait, wait_for_state, write_profile
from private_cluster import PrivateCluster

from ftlab.cli import main
from ftlab.cluster import Profile, submit_array

pytestmark = pytest.mark.slurm

RUN = Path("runs/tiny/job")
SLOW = """
import time
from pathlib import Path
from ftlab.methods import LoRA

class Slow(LoRA):
    def penalty(self, network):
        time.sleep(float(Path("slow").read_text()) if Path("slow").exists() else 0)
"""


def words(*options: object, name: str = RUN.name) -> list[object]:
    """A run of 12 steps, each of which is saved, and takes as many seconds as the file `slow` says."""
    said = {
        "--run.name": name,
        "--trainer.max_steps": 12,
        "--trainer.val_check_interval": 6,
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


_undisturbed: dict[str, str] = {}


@pytest.fixture
def place(workplace: Path, cluster: PrivateCluster) -> Path:
    (workplace / "slow.py").write_text(SLOW)
    return workplace


@pytest.fixture
def undisturbed(place: Path) -> Callable[[], dict[str, str]]:
    """The weights of the same run in this process, which nothing stops."""

    def make() -> dict[str, str]:
        if not _undisturbed:
            assert main([str(word) for word in words(name="whole")]) == 0
            _undisturbed.update(weights(RUN.with_name("whole")))
        return _undisturbed

    return make


def test_a_job_waits_trains_as_a_process_does_and_is_submitted_once(
    undisturbed: Callable[[], dict[str, str]], ftlab: Callable[..., Answer], place: Path
) -> None:
    before, _ = submit_array([["--version"]], place / "before", Profile(setup=["sleep 8"]))
    first = ftlab(*words("--on", "slurm", "--after", before.id))
    job = submitted(RUN)
    assert (first.code, first.out) == (0, f"{job}\n")
    assert first.err.startswith(f"ftlab: job {job} is submitted for {RUN}")
    (RUN / "slurm/job.json").unlink()  # as where the launcher was killed before it had noted the job
    again = ftlab(*words("--on=slurm"))
    assert (again.code, again.out) == (0, f"{job}\n")
    assert f"job {job} is there for {RUN} already" in again.err
    assert submitted(RUN) == job
    listed = {line["job"]: line for line in json.loads(ftlab("jobs", "--json").out)}
    assert (listed[job]["state"], listed[job]["why"], listed[job]["step"]) == ("queued", "Dependency", 0)
    assert listed[f"{before.id}_0"]["run"] == str(place / "before")
    wait(lambda: state(job) == "RUNNING", lambda: log(RUN))
    assert state(before.id) == "COMPLETED"
    assert wait_for_state(RUN, "COMPLETED", "FAILED") == "COMPLETED", log(RUN)
    assert weights() == undisturbed()
    over = ftlab(*words("--on", "slurm"))
    assert (over.code, over.err) == (0, f"ftlab: {RUN} has finished; another --run.name repeats it\n")
    assert json.loads(ftlab("jobs", "--json").out) == []
    assert slurm("squeue", "-h", "-t", "all", "-o%k").splitlines().count(f"ftlab:{RUN.resolve()}") == 1


def test_a_node_fails(
    undisturbed: Callable[[], dict[str, str]], ftlab: Callable[..., Answer], cluster: PrivateCluster
) -> None:
    Path("slow").write_text("1")
    assert ftlab(*words("--on", "slurm")).code == 0
    when_trained(3)
    job = submitted(RUN)
    cluster.control("update", f"nodename={slurm('squeue', '-h', '-j', job, '-o%N')}", "state=down", "reason=test")
    wait(lambda: state(job) != "RUNNING", lambda: log(RUN))
    Path("slow").unlink()
    line = next(line for line in json.loads(ftlab("jobs", "--json").out) if line["job"] == job)
    assert line["step"] >= 3
    assert line["steps"] == 12
    assert wait_for_state(RUN, "COMPLETED", "FAILED", "NODE_FAIL") == "COMPLETED", log(RUN)
    assert sessions() == ["killed", "finished"] or sessions() == ["preempted", "finished"]
    assert weights() == undisturbed()


def test_two_nodes_train_as_two_processes_of_one_do_and_are_preempted_together(
    place: Path, ftlab: Callable[..., Answer]
) -> None:
    two = ["--data.batch_size", 2, "--trainer.strategy", "ddp"]
    Path("slow").write_text("1")
    assert ftlab(*words(*two, "--trainer.num_nodes", 2, "--on", "slurm")).code == 0
    when_trained(3)
    job = submitted(RUN)
    slurm("scancel", "--signal=USR1", job)  # what --signal has SLURM do before the time is over
    wait(lambda: state(job) == "PENDING", lambda: log(RUN))
    Path("slow").unlink()
    here = [sys.executable, "-m", "ftlab", *map(str, words(*two, "--trainer.devices", 2, name="whole"))]
    subprocess.run(here, check=True)
    assert wait_for_state(RUN, "COMPLETED", "FAILED") == "COMPLETED", log(RUN)
    assert sessions() == ["preempted", "finished"]
    assert "stopped by SIGUSR1 at step" in log(RUN)
    record = json.loads((RUN / "provenance.json").read_text())
    assert record["sessions"][-1]["devices"] == {"kind": "cpu", "number": 2, "nodes": 2}
    assert weights() == weights(RUN.with_name("whole"))


def test_its_time_is_over(
    undisturbed: Callable[[], dict[str, str]], ftlab: Callable[..., Answer], cluster: PrivateCluster
) -> None:
    Path("slow").write_text("5")  # or it would be over before its time
    write_profile("short", time="00:01:00", lead_seconds=10)
    assert ftlab(*words("--on", "slurm:short")).code == 0
    job = submitted(RUN)
    when_trained(1)
    wait(lambda: state(job) == "PENDING", lambda: log(RUN))
    cluster.control("update", f"jobid={job}", "timelimit=10")  # on a slow machine a minute goes by before it trains
    Path("slow").unlink()
    assert wait_for_state(RUN, "COMPLETED", "FAILED", "TIMEOUT") == "COMPLETED", log(RUN)
    assert "stopped by SIGUSR1 at step" in log(RUN)
    assert sessions()[0] == "preempted"  # more than once where the machine is slow
    assert weights() == undisturbed()


def test_one_that_is_cancelled_is_not_queued_again_until_it_is_asked_for(
    place: Path, ftlab: Callable[..., Answer]
) -> None:
    Path("slow").write_text("1")
    assert ftlab(*words("--on", "slurm")).code == 0
    when_trained(1)
    first = submitted(RUN)
    slurm("scancel", first)
    wait(lambda: state(first) == "CANCELLED" and sessions() == ["preempted"], lambda: log(RUN))
    again = ftlab(*words("--on", "slurm", "--after", "1"))
    assert "is submitted" in again.err
    assert submitted(RUN) != first
    assert state(first) == "CANCELLED"


def test_an_array_whose_jobs_end_each_in_its_own_way_and_what_waits_for_it(
    place: Path, ftlab: Callable[..., Answer]
) -> None:
    array, _ = submit_array([["--version"], ["no-such-verb"], ["--help"]], place / "study", Profile(), at_once=2)
    assert submit_array([["--version"]], place / "study", Profile())[1] is False
    assert ftlab(*words("--on", "slurm", "--after", array.id)).code == 0
    wait(lambda: set(states(array.id)) == {"COMPLETED", "FAILED"}, lambda: str(states(array.id)))
    assert sorted(states(array.id)) == ["COMPLETED", "COMPLETED", "FAILED"]
    said = [(place / f"study/slurm/{array.id}_{number}.out").read_text() for number in range(3)]
    assert said[0].startswith("ftlab 0.")
    assert "unknown verb 'no-such-verb'" in said[1]
    assert said[2].startswith("usage: ftlab")
    wait(lambda: state(submitted(RUN)) == "CANCELLED", lambda: state(submitted(RUN)))  # nothing trains on a failure


def test_training_that_fails_is_not_tried_again_and_its_log_stays(place: Path, ftlab: Callable[..., Answer]) -> None:
    assert ftlab(*words("--data.path", "nowhere.jsonl", "--on", "slurm")).code == 0
    assert wait_for_state(RUN, "FAILED", "COMPLETED") == "FAILED"
    assert "nowhere.jsonl" in log(RUN)
    assert [path.name for path in RUN.iterdir()] == ["slurm"]


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ({"partition": "nowhere"}, "invalid partition specified: nowhere"),
        ({"gpus": 9}, "Requested node configuration is not available"),
        ({"memory": "900T"}, "Memory specification can not be satisfied"),
        ({"options": ["--no-such-option"]}, "unrecognized option '--no-such-option'"),
    ],
)
def test_what_the_cluster_refuses(
    place: Path, ftlab: Callable[..., Answer], profile: dict[str, Any], said: str
) -> None:
    write_profile("greedy", **profile)
    answer = ftlab(*words("--on", "slurm:greedy"))
    assert answer.code == 1
    assert answer.err.startswith("ftlab: SLURM refuses: ")
    assert answer.err.count("\n") == 1
    assert said in answer.err
    assert not Path("runs").exists()
