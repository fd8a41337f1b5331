"""A private cluster for the tests that are marked `slurm`, and a place to give commands in."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from job_watching import Answer, slurm, write_profile
from private_cluster import PrivateCluster, missing
from tiny_experiment import write_experiment

from ftlab.cli import main
from ftlab.networks import Network


@pytest.fixture
def ftlab(capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Gives a command in this process."""

    def command(*words: object) -> Answer:
        capfd.readouterr()
        code = main([str(word) for word in words])
        return Answer(code, *capfd.readouterr())

    return command


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Network, data_path: str) -> Path:
    """The working directory, with an experiment in tiny.yaml, and a profile for it."""
    monkeypatch.chdir(tmp_path)
    write_experiment(tmp_path, network, data_path)
    write_profile()
    return tmp_path


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateCluster]:
    if reason := missing():
        pytest.skip(reason)
    with PrivateCluster(tmp_path_factory.mktemp("cluster") / "slurm") as cluster:
        yield cluster


@pytest.fixture
def cluster(_cluster: PrivateCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateCluster]:
    """The session's private cluster, all of whose nodes are at work."""
    monkeypatch.setenv("SLURM_CONF", str(_cluster.configuration))
    # jobs import this ftlab, wherever they run
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    yield _cluster
    slurm("scancel", "--full", f"--user={os.getuid()}")
    _cluster.resume()
