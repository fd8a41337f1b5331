"""Code in C++: made by one process, found by the next, and the same wherever a run was stopped."""

import shutil
import signal
from pathlib import Path

import pytest
from forked import Forked
from test_stopping import RUN, begin, when_trained
from tiny_experiment import results

COMPILED = ["--model.compile", "true", "--model.method", "Full"]


def ended(process: Forked) -> int:
    """The exit code: of a machine that has other work, too, in minutes."""
    _, err = process.communicate(timeout=900)
    assert "Traceback" not in err, err
    return process.returncode


def code_in(cache: Path) -> dict[str, float]:
    """When it was made, by its name, which is a digest."""
    return {path.name: path.stat().st_mtime for path in cache.rglob("*.so")}


@pytest.mark.slow  # code is made three times, which takes minutes each time where there is other work
def test_stopped_where_no_code_is_kept(workplace: Path, cache: Path) -> None:
    """A process that goes on meets other batches first, and makes its code anew."""
    kept = cache / "compiled"
    assert ended(begin("--run.name", "whole", *COMPILED)) == 0
    made = code_in(kept)
    assert made
    assert ended(begin("--run.name", "again", *COMPILED)) == 0
    assert code_in(kept) == made
    shutil.rmtree(kept)
    process = begin(*COMPILED)
    when_trained(process, 5)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == 75
    shutil.rmtree(kept)
    assert ended(begin(*COMPILED)) == 0
    assert code_in(kept).keys() <= made.keys()
    whole = results(RUN.with_name("whole"))
    assert results(RUN) == whole
    assert results(RUN.with_name("again")) == whole
