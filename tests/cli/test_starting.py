"""What a start imports, and in which order: held by what is in memory afterwards, not by the clock."""

import subprocess
import sys
from pathlib import Path

import pytest

from ftlab.cli import main, wandb

NEVER = {"datasets", "lxml", "nltk", "optuna", "pandas", "rouge_score", "sacrebleu", "sklearn", "torchvision", "wandb"}


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def imported_by(command: str) -> set[str]:
    code = f"import sys; from ftlab.cli import main; assert main({command.split()}) == 0; print(*sys.modules)"
    return set(in_a_fresh_process(code).split())


@pytest.mark.parametrize("method", ["LoRA", "Full", "ZeroShot"])
def test_fit_imports_nothing_that_it_does_not_use(workplace: Path, method: str) -> None:
    assert main(["prepare", "-c", "tiny.yaml"]) == 0  # which has pyarrow import pandas
    found = imported_by(f"fit -c tiny.yaml --model.method {method} --trainer.max_steps 1")
    assert not found & NEVER
    assert {"torch", "lightning", "transformers"} <= found


def test_prepare_imports_no_method(workplace: Path) -> None:
    assert not imported_by("prepare -c tiny.yaml") & {"peft", "bitsandbytes", "wandb", "sklearn"}


def test_wandb_comes_before_torch_where_it_will_log() -> None:
    code = (
        "import os, sys; os.environ.pop('WANDB_MODE', None)\nfrom ftlab.cli.wandb import import_first\n"
        "import_first([]); print('torch' in sys.modules, 'wandb.apis.public' in sys.modules)"
    )
    assert in_a_fresh_process(code) == "False True"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--wandb.mode", "disabled"],
        ["--wandb.mode=offline", "--wandb.mode=disabled"],
        ["-c", "offline.yaml", "-c", "off.yaml"],
        ["-c", "odd.yaml", "-c", "off.yaml", "--wandb.project", "offline"],
    ],
)
def test_wandb_is_known_to_be_off(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("offline.yaml").write_text("wandb: {mode: offline}")
    Path("off.yaml").write_text("wandb: {mode: disabled}")
    Path("odd.yaml").write_text("wandb: 3")
    assert wandb._asked(arguments) == "disabled"


def test_the_collector_works_on_after_a_verb(workplace: Path) -> None:
    code = "import gc, sys; from ftlab.cli import main; {}; print(gc.isenabled(), gc.get_freeze_count() > 0)"
    assert in_a_fresh_process(code.format("sys.argv[1:] = ['jobs']; main()")) == "True True"
    assert in_a_fresh_process(code.format("main(['jobs'])")) == "True False"  # a notebook's garbage is to be collected


def test_the_collector_stays_off_where_it_was(workplace: Path) -> None:
    code = "import gc; gc.disable(); from ftlab.cli import main; main(['jobs']); print(gc.isenabled())"
    assert in_a_fresh_process(code) == "False"
