"""The commit and the changes of a repository, as git itself gives them: bounded, and without secrets."""

import subprocess
from pathlib import Path

import pytest

from ftlab.runs import code as module
from ftlab.runs.code import code, own_code


def git(directory: Path, *arguments: str) -> str:
    own = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(
        ["git", *own, *arguments], cwd=directory, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "mine.py").write_text("rate = 1\n")
    (tmp_path / ".gitignore").write_text("runs/\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def test_a_clean_repository(repository: Path) -> None:
    assert code(repository) == {
        "commit": git(repository, "rev-parse", "HEAD"),
        "diff": "",
        "diff_bytes": 0,
        "diff_digest": None,
        "untracked": [],
    }


def test_changes_staged_or_not_and_files_that_are_not_tracked(repository: Path) -> None:
    (repository / "mine.py").write_text("rate = 2\n")
    (repository / "staged.py").write_text("x = 1\n")
    git(repository, "add", "staged.py")
    for name in ("new.py", "more/a.py", "more/b.py", "runs/config.yaml"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).touch()
    state = code(repository / "more")  # from wherever in it
    assert state is not None
    assert state["untracked"] == ["more/", "new.py"]
    assert {"-rate = 1", "+rate = 2", "+x = 1"} <= set(state["diff"].splitlines())
    # the diff makes the same tree of the same commit
    git(repository, "stash")
    (repository / "diff").write_text(state["diff"])
    git(repository, "apply", "diff")
    assert (repository / "mine.py").read_text() == "rate = 2\n"


def test_a_secret_in_a_diff_is_hidden_and_its_digest_does_not_depend_on_it(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = set()
    for secret in ("swordfish", "barracuda"):
        monkeypatch.setenv("MY_PASSWORD", secret)
        (repository / "mine.py").write_text(f"password = '{secret}'\n")
        state = code(repository)
        assert state is not None
        assert "+password = '***'" in state["diff"]
        digests.add(state["diff_digest"])
    assert len(digests) == 1


def test_a_diff_that_is_too_long_is_known_by_its_digest(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "mine.py").write_text("rate = 2\n" * 100)
    whole = code(repository)
    monkeypatch.setattr(module, "MOST_BYTES", 500)
    state = code(repository)
    assert whole is not None
    assert state is not None
    assert state["diff"] is None
    assert "more than 500 bytes" in state["note"]
    assert state["diff_digest"] == whole["diff_digest"]


def test_before_the_first_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "mine.py").touch()
    state = code(tmp_path)
    assert state is not None
    assert (state["commit"], state["untracked"]) == (None, ["mine.py"])


def test_outside_a_repository_and_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert code(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert code(Path(__file__).parent) is None


def test_a_package_in_a_checkout_and_one_that_is_installed_below_it(repository: Path) -> None:
    for name in ("tracked", "runs/installed"):
        (repository / name).mkdir(parents=True)
        (repository / name / "__init__.py").touch()
    git(repository, "add", "tracked")
    git(repository, "commit", "--quiet", "-m", "second")
    assert own_code(repository / "tracked") == {"commit": git(repository, "rev-parse", "HEAD")}
    assert own_code(repository / "runs/installed") == {}
