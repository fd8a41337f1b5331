"""Submission once, with commands in SLURM's place that answer what SLURM does; the real one is in test_jobs.py."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ftlab.cluster import Job, Profile, job_of, submit_array, submit_once
from ftlab.cluster.slurm import UnreachableError, parse
from ftlab.cluster.submission import directory_of, mark_of
from ftlab.errors import UserError

RUN = Path("runs/e/r")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts an sbatch that submits job 12, or fails with some words, and a squeue that lists, in place of SLURM's."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)

    def put(listed: str = "", refusal: str = "", afterwards: str = "") -> None:
        (tmp_path / "listed").write_text(listed)
        sbatch = f"cd {tmp_path}; echo called >>calls; env >environment; printf '%s' '{afterwards}' >>listed"
        end = f"echo '{refusal}' >&2; exit 1" if refusal else "echo '12;cluster'"
        for name, text in {"sbatch": f"{sbatch}\n{end}", "squeue": f"cat {tmp_path}/listed"}.items():
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)

    return put


def submit() -> tuple[Job, bool]:
    return submit_once(RUN, "ftlab-e-r", "#!/bin/sh\n", {"profile": "default"})


def listed(state: str, number: int = 12, mark: str | None = None) -> str:
    return f"{number}|{state}||None|ftlab-e-r|{mark_of(RUN) if mark is None else mark}\n"


def calls() -> int:
    return len(Path("calls").read_text().splitlines()) if Path("calls").exists() else 0


def test_a_job_is_submitted_and_noted(commands: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    commands()
    monkeypatch.setenv("SLURM_NTASKS", "7")
    monkeypatch.setenv("SLURM_CONF", "where")
    job, new = submit()
    assert (job.id, new, calls()) == ("12", True, 1)
    said = json.loads((RUN / "slurm/job.json").read_text())
    assert (said["job"], said["name"], said["profile"]) == ("12", "ftlab-e-r", "default")
    assert (RUN / "slurm/job.sh").read_text() == "#!/bin/sh\n"
    there = Path("environment").read_text().splitlines()
    assert "SLURM_CONF=where" in there
    assert "SLURM_NTASKS=7" not in there  # of a job that this one is submitted from within


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED"])
def test_one_that_is_there_is_adopted(commands: Callable[..., None], state: str) -> None:
    commands(listed(state))
    job, new = submit()
    assert (job.id, job.state, new, calls()) == ("12", state, False, 0)
    assert json.loads((RUN / "slurm/job.json").read_text())["job"] == "12"


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"])
def test_after_one_that_is_over_another_is_submitted(commands: Callable[..., None], state: str) -> None:
    commands(listed(state, 11))
    assert submit()[1]


def test_where_a_cluster_changes_comments_the_note_tells(commands: Callable[..., None]) -> None:
    commands()
    submit()
    commands(listed("RUNNING", mark="(null)"))
    assert not submit()[1]
    commands(listed("RUNNING", number=13, mark="(null)"))  # of the same name, and another's
    assert submit()[1]


def test_a_refusal_is_said_and_leaves_nothing(commands: Callable[..., None]) -> None:
    words = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    commands(refusal=words)
    with pytest.raises(UserError) as refusal:
        submit()
    assert str(refusal.value) == (
        "SLURM refuses: Batch job submission failed: Invalid account or account/partition combination specified; "
        "nothing was submitted: change the profile, or ask who runs the cluster"
    )
    assert not Path("runs").exists()


def test_a_refusal_leaves_what_was_there(commands: Callable[..., None]) -> None:
    commands()
    submit()
    commands(refusal="no")
    with pytest.raises(UserError):
        submit()
    assert (RUN / "slurm/job.sh").exists()


def test_slurm_falls_silent_after_it_has_taken_the_job(commands: Callable[..., None]) -> None:
    silence = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    commands(refusal=silence)
    with pytest.raises(UnreachableError, match="SLURM does not answer"):
        submit()
    assert (RUN / "slurm").is_dir()  # or the job could not say anything
    commands(refusal=silence, afterwards=listed("PENDING").strip())
    assert submit()[0].id == "12"


def test_slurm_does_not_answer(commands: Callable[..., None], tmp_path: Path) -> None:
    commands()
    (tmp_path / "bin/squeue").write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1\n"
    )
    with pytest.raises(UnreachableError, match="Unable to contact slurm controller"):
        submit()
    assert calls() == 0
    assert not Path("runs").exists()


def test_no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"there is no SLURM on this machine \(sbatch is not found\)"):
        submit()
    assert list(tmp_path.iterdir()) == []


def test_an_array(commands: Callable[..., None]) -> None:
    commands()
    job, new = submit_array([["sweep", "work", "DIR"]] * 3, RUN, Profile(), at_once=2)
    assert (job.id, new) == ("12", True)
    assert "#SBATCH --array=0-2%2" in (RUN / "slurm/job.sh").read_text()
    commands("".join(f"12_{n}|RUNNING|n1|None|ftlab-r|{mark_of(RUN)}\n" for n in range(3)))
    assert submit_array([["sweep", "work", "DIR"]] * 3, RUN, Profile(), at_once=2)[1] is False
    with pytest.raises(UserError, match="there is nothing to submit"):
        submit_array([], RUN, Profile())


def test_what_squeue_prints_is_read() -> None:
    answer = (
        "12|RUNNING|n[1-2]|None|ftlab-e-r|ftlab:/a/runs/e/r\n"
        "13_4|PENDING||Resources|a name|(null)\n"
        "14|CANCELLED by 0||None|x|what | ever\n"
        "slurm_load_jobs error: not a line of it\n"
    )
    assert parse(answer) == [
        Job("12", "RUNNING", "n[1-2]", "", "ftlab-e-r", "ftlab:/a/runs/e/r"),
        Job("13_4", "PENDING", "", "Resources", "a name", ""),
        Job("14", "CANCELLED by 0", "", "", "x", "what | ever"),
    ]
    assert [directory_of(job) for job in parse(answer)] == [Path("/a/runs/e/r"), None, None]
    assert parse("") == []


def test_jobs_of_other_directories_are_not_this_ones(tmp_path: Path) -> None:
    there = [Job("1", "RUNNING", mark=mark_of(tmp_path / "a")), Job("2", "COMPLETED", mark=mark_of(tmp_path / "b"))]
    assert [job.id for job in job_of(tmp_path / "a", there)] == ["1"]
    assert job_of(tmp_path / "b", there) == []
