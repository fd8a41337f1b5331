"""Profiles: where they are found, what they may say, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ftlab.cluster import Profile, load_profile
from ftlab.cluster.profile import seconds
from ftlab.errors import UserError

SHIPPED = sorted(path.stem for path in (Path(__file__).parents[2] / "slurm/profiles").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def profile(**said: Any) -> Profile:
    file = Path("slurm/profiles/mine.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(said))
    return load_profile("mine")


def refused(**said: Any) -> str:
    with pytest.raises(UserError) as refusal:
        profile(**said)
    sentence = str(refusal.value)
    assert sentence.startswith("slurm/profiles/mine.yaml: ")
    return sentence.removeprefix("slurm/profiles/mine.yaml: ")


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_is_found_from_anywhere(name: str) -> None:
    assert load_profile(name).cpus > 1


def test_the_working_directory_comes_first() -> None:
    assert load_profile("default").gpus == 1
    Path("slurm/profiles").mkdir(parents=True)
    Path("slurm/profiles/default.yaml").write_text("gpus: a100:2\n")
    assert load_profile("default") == Profile(gpus="a100:2")
    assert load_profile("default").gpu_count == 2
    assert load_profile("cpu").gpus == 0


def test_an_empty_profile_leaves_all_to_the_cluster() -> None:
    assert profile() == Profile()


def test_the_command_line_says_last_for_what_the_job_waits() -> None:
    profile(after=3)
    assert load_profile("mine").dependency == "afterok:3"
    assert load_profile("mine", after=None).dependency == "afterok:3"
    assert load_profile("mine", after="4:5_6").dependency == "afterok:4:5_6"
    assert load_profile("mine", after="afterany:4").dependency == "afterany:4"


def test_one_that_is_not_there() -> None:
    profile()
    with pytest.raises(UserError) as refusal:
        load_profile("other")
    there = ", ".join(sorted([*SHIPPED, "mine"]))
    assert str(refusal.value) == f"there is no profile slurm/profiles/other.yaml: there are {there}"


def test_an_unknown_key() -> None:
    assert refused(partitoin="gpu") == "there is no key partitoin: did you mean partition?"
    assert refused(zzz=1).startswith("there is no key zzz: there are partition, account, ")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"gpus": "many"}, "gpus is 'many': give a number, or a type and a number such as a100:4"),
        ({"cpus": "8"}, "cpus is '8': it must be a whole number"),
        ({"cpus": True}, "cpus is True: it must be a whole number"),
        ({"cpus": 0}, "cpus is 0: give a number from 1 on"),
        ({"partition": 7}, "partition is 7: it must be a single line of text"),
        ({"partition": "a\n#SBATCH --qos=b"}, "partition is 'a\\n#SBATCH --qos=b': it must be a single line of text"),
        ({"modules": "cuda"}, "modules is 'cuda': it must be a list of single lines of text"),
        ({"cpus": None}, "cpus is None: it must be a whole number"),
        (
            {"environment": {"A B": "1"}},
            "environment: 'A B' cannot be the name of a variable: take letters, digits and _",
        ),
        (
            {"environment": {"A": True}},
            "environment is {'A': True}: it must be names, each with a text (in quotes where YAML would take it for "
            "something else) or a number",
        ),
        ({"time": "soon"}, 'time is \'soon\': give it as "HOURS:MINUTES:SECONDS" or "DAYS-HOURS"'),
        (
            {"time": "00:02:00"},
            "a job of time 00:02:00 would be told to stop 120 s before its end, as it starts, and never get anywhere: "
            "give more time, or less lead_seconds",
        ),
    ],
)
def test_values_that_make_no_sense(said: dict[str, Any], sentence: str) -> None:
    assert refused(**said) == sentence


def test_a_time_without_quotes_is_a_number_to_yaml() -> None:
    Path("slurm/profiles").mkdir(parents=True)
    Path("slurm/profiles/mine.yaml").write_text("time: 24:00:00\n")
    with pytest.raises(UserError, match="time is 86400: it must be in quotes"):
        load_profile("mine")


def test_a_secret_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "quite-secret")
    assert refused(environment={"OTHER": "quite-secret"}).startswith(
        "environment.OTHER holds the value of $SOME_API_KEY"
    )


@pytest.mark.parametrize(
    ("time", "expected"),
    [  # as the manual of sbatch has them
        ("90", 5400),
        ("90:30", 5430),
        ("1:30:15", 5415),
        ("2-12", 216000),
        ("2-12:30", 217800),
        ("2-12:30:05", 217805),
        ("UNLIMITED", None),
    ],
)
def test_time_limits(time: str, expected: int | None) -> None:
    assert seconds(time) == expected
