"""Runs in processes of their own that something really breaks, and the same command given again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from forked import Forked
from tiny_experiment import results, write_experiment

from ftlab.networks import Network

STEPS = 12
PATIENCE = 300
"""Seconds in which a run must have ended that something has broken."""

METHOD = '''"""A method that breaks something, once: the file that BREAK names is there until then."""
import os, shutil, time
from pathlib import Path
import torch
from ftlab.methods import LoRA

CALL, WHAT = int(os.environ.get("AT", 0)), os.environ.get("BREAK", "")


class Faulty(LoRA):
    calls = 0

    def penalty(self, network):
        self.calls += 1
        Path(f"busy-{os.environ.get('LOCAL_RANK', 0)}").touch()
        time.sleep(float(os.environ.get("PAUSE", 0)))
        if self.calls == CALL:
            globals()[WHAT]()

    def adapt(self, network, batches=None):
        adapted = super().adapt(network, batches)
        if "POISON" in os.environ:
            adapted.register_forward_hook(poison, with_kwargs=True)
        return adapted

    def save(self, network, directory):
        if WHAT == "fill_at_save":
            fill()
        super().save(network, directory)


def poison(network, args, inputs, output):
    if network.training and (inputs["input_ids"] == int(os.environ["POISON"])).any():
        output.logits = output.logits * float("nan")
    return output


def allocate():
    torch.empty(1 << 50)


def fill():
    with open(Path(os.environ["DISK"]) / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
'''


@dataclass
class Ended:
    """How a command ended: its exit code, the last line that it said, and all."""

    code: int
    said: str
    err: str


@dataclass
class Fit:
    """Gives `ftlab fit` for a run of STEPS steps with a checkpoint at each."""

    run: Path
    options: list[str] = field(default_factory=list)

    def begin(self, *options: str, **environment: object) -> Forked:
        said = {"--run.name": self.run.name, "--run.root": str(self.run.parent.parent), "--model.method.dropout": "0.2"}
        words = [word for pair in said.items() for word in pair]
        return Forked(
            ["fit", "-c", "tiny.yaml", *words, *self.options, *options],
            {name: str(value) for name, value in environment.items()},
            own_session=True,
        )

    def __call__(self, *options: str, **environment: object) -> Ended:
        return _ended(self.begin(*options, **environment))

    @property
    def state(self) -> str:
        return json.loads((self.run / "provenance.json").read_text())["state"]

    @property
    def results(self) -> dict[str, object]:
        return results(self.run)

    def leftovers(self) -> list[str]:
        """Files that were being written."""
        return [str(path) for path in self.run.rglob(".*") if path.name not in (".lock", ".owner")]


def _ended(process: Forked) -> Ended:
    """Waits; a process that does not end is killed with all that it has started."""
    try:
        _, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert "Traceback" not in err, err
    return Ended(process.returncode, (err.splitlines() or [""])[-1], err)


def _wait_for(what: Callable[[], object], process: Forked) -> None:
    """Until `what` holds, and no longer than the process lives."""
    until = time.monotonic() + PATIENCE
    while not what():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Network, data_path: str) -> Path:
    """The working directory, with tiny.yaml and the method of `breaking.py`."""
    monkeypatch.chdir(tmp_path)
    write_experiment(tmp_path, network, data_path, "breaking.Faulty", STEPS, validate=5, checkpoint=1)
    Path("breaking.py").write_text(METHOD)
    return tmp_path


@pytest.fixture
def fit(workplace: Path) -> Fit:
    return Fit(Path("runs/tiny/broken"))


@pytest.fixture(scope="session")
def known() -> dict[tuple[str, ...], dict[str, object]]:
    """What runs that nothing breaks have come to, by their options."""
    return {}


@pytest.fixture
def undisturbed(workplace: Path, known: dict[tuple[str, ...], dict[str, object]]) -> Callable[..., dict[str, object]]:
    """The results of a run that nothing breaks: the same for every test."""

    def make(*options: str) -> dict[str, object]:
        if options not in known:
            whole = Fit(Path("runs/tiny/whole"))
            assert whole(*options).code == 0
            known[options] = whole.results
        return known[options]

    return make


@dataclass
class Disk:
    """A small file system in memory."""

    place: Path

    def resize(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", self.place], check=True)

    def read_only(self, yes: bool) -> None:
        subprocess.run(["mount", "-o", f"remount,{'ro' if yes else 'rw'}", self.place], check=True)


@pytest.fixture
def disk(workplace: Path) -> Iterator[Disk]:
    """A disk of 4 MB; skips where nothing may be mounted."""
    place = workplace / "disk"
    place.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("nothing may be mounted here")
    yield Disk(place)
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def ended() -> Callable[[Forked], Ended]:
    return _ended


@pytest.fixture
def wait_for() -> Callable[..., None]:
    return _wait_for
