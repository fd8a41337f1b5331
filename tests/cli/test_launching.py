"""Who starts the processes of a run makes no difference: Lightning, or torchrun; srun is tried in tests/cluster."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_experiment import results

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow
def test_torchrun_and_lightning(workplace: Path) -> None:
    for name, launcher in {"lightning": [], "torchrun": TORCHRUN}.items():
        fit = ["-m", "ftlab", "fit", "-c", "tiny.yaml", "--trainer.devices", "2", "--run.name", name]
        done = subprocess.run([sys.executable, *launcher, *fit], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert results(Path("runs/tiny/torchrun")) == results(Path("runs/tiny/lightning"))
