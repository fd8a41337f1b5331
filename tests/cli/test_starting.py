"""What a start imports, and in which order: held by what is in memory afterwards, not by the clock."""

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftlab.cli import deferred, main, wandb

NEVER = {"datasets", "lxml", "nltk", "optuna", "pandas", "rouge_score", "sacrebleu", "sklearn", "torchvision", "wandb"}
COMPILER = {"networkx", "torch._inductor.compile_fx"}


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def imported_by(command: str) -> set[str]:
    code = f"import sys; from ftlab.cli import main; assert main({command.split()}) == 0; print(*sys.modules)"
    return set(in_a_fresh_process(code).split())


@pytest.mark.parametrize(("method", "unneeded"), [("LoRA", set()), ("Full", COMPILER), ("ZeroShot", COMPILER)])
def test_fit_imports_nothing_that_it_does_not_use(workplace: Path, method: str, unneeded: set[str]) -> None:
    assert main(["prepare", "-c", "tiny.yaml"]) == 0  # which has pyarrow import pandas
    found = imported_by(f"fit -c tiny.yaml --model.method {method} --trainer.max_steps 1")
    assert not found & (NEVER | {"scipy.stats"} | unneeded)
    assert {"torch", "lightning", "transformers"} <= found


def test_prepare_imports_no_method(workplace: Path) -> None:
    assert not imported_by("prepare -c tiny.yaml") & {"peft", "bitsandbytes", "wandb", "sklearn", "scipy.stats"}


def test_what_a_start_left_out_is_there_when_asked_for(workplace: Path) -> None:
    code = """
import sys
from ftlab.cli import main
assert main("fit -c tiny.yaml --model.method Full --trainer.max_steps 1".split()) == 0
assert not {"scipy.stats", "torch._inductor.compile_fx"} & set(sys.modules)
import numpy, torch, scipy.signal, bitsandbytes as bnb
from scipy.signal import hamming
from torchmetrics.functional.audio import permutation_invariant_training, signal_noise_ratio
assert numpy.allclose(hamming(5), scipy.signal.windows.hamming(5)) and len(scipy.signal.butter(3, 0.2)[0]) == 4
best, order = permutation_invariant_training(
    torch.eye(4)[None], torch.eye(4)[None].flip(1), signal_noise_ratio, eval_func="max"
)
assert order.tolist() == [[3, 2, 1, 0]], order
codes, state = bnb.functional.quantize_4bit(torch.randn(64, 64), quant_type="nf4")
assert bnb.functional.dequantize_4bit(codes, state).shape == (64, 64)
assert type(scipy.signal) is type(bnb) is type(sys)
print("whole")
"""
    assert in_a_fresh_process(code) == "whole"


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
    code = "import gc; from ftlab.cli import main; main(['jobs']); print(gc.isenabled(), gc.get_freeze_count() > 0)"
    assert in_a_fresh_process(code) == "True True"


def test_the_collector_stays_off_where_it_was(workplace: Path) -> None:
    code = "import gc; gc.disable(); from ftlab.cli import main; main(['jobs']); print(gc.isenabled())"
    assert in_a_fresh_process(code) == "False"


# ------------------------------------------------------------------ a package whose import is deferred


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`slow_pkg`, deferred, with a submodule; each file leaves a line in `log` when it runs."""
    place = tmp_path / "slow_pkg"
    place.mkdir()
    for name in ("__init__", "part"):
        (place / f"{name}.py").write_text(
            f"from pathlib import Path\nwith Path({str(tmp_path / 'log')!r}).open('a') as f: f.write('{name} ')\n"
            f"value = '{name}'\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(deferred.DEFERRED, "slow_pkg", {"old_name": "kept"})
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    deferred.defer()
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "slow_pkg"]:
        del sys.modules[name]


def ran(place: Path) -> str:
    return (place / "log").read_text().strip() if (place / "log").exists() else ""


def test_a_deferred_package_runs_at_the_first_look(package: Path) -> None:
    import slow_pkg  # type: ignore[import-not-found]
    import slow_pkg as again  # noqa: F401

    assert slow_pkg.__name__ == "slow_pkg"
    assert slow_pkg.__file__ == str(package / "slow_pkg" / "__init__.py")
    assert slow_pkg.old_name == "kept"
    assert ran(package) == ""
    assert slow_pkg.value == "__init__"
    assert (ran(package), type(slow_pkg), slow_pkg.__spec__.loader) == ("__init__", type(gc), slow_pkg.__loader__)
    assert slow_pkg.old_name == "kept"
    with pytest.raises(AttributeError, match=r"^module 'slow_pkg' has no attribute 'other'"):
        _ = slow_pkg.other
    assert ran(package) == "__init__"


def test_a_name_taken_from_it_is_a_look(package: Path) -> None:
    from slow_pkg import value

    assert (value, ran(package)) == ("__init__", "__init__")


def test_a_submodule_of_it_comes_after_it(package: Path) -> None:
    import slow_pkg.part

    assert ran(package) == "__init__ part"
    assert slow_pkg.part.value == "part"


def test_a_deferred_package_that_fails_fails_where_it_is_used_and_may_be_tried_again(package: Path) -> None:
    file = package / "slow_pkg" / "__init__.py"
    good = file.read_text()
    file.write_text("from slow_pkg import nothing")
    import slow_pkg

    for _ in range(2):
        with pytest.raises(ImportError, match="nothing"):
            _ = slow_pkg.value
    file.write_text(good)
    assert (slow_pkg.value, ran(package)) == ("__init__", "__init__")


def test_threads_that_look_at_once_find_it_whole(package: Path) -> None:
    file = package / "slow_pkg" / "__init__.py"
    file.write_text(f"import time; time.sleep(0.2)\n{file.read_text()}")
    import slow_pkg

    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(slow_pkg.value)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, ran(package)) == (["__init__"] * 4, "__init__")


def test_it_loads_under_the_hooks_of_wandb(package: Path) -> None:
    from wandb.sdk.lib.import_hooks import register_post_import_hook, unregister_post_import_hook

    seen: list[str] = []
    register_post_import_hook(lambda module: seen.append(module.__name__), "run", "slow_pkg")
    try:
        import slow_pkg
    finally:
        unregister_post_import_hook("slow_pkg", "run")
    assert (seen, ran(package)) == (["slow_pkg"], "")
    assert (slow_pkg.value, ran(package)) == ("__init__", "__init__")


def test_a_package_that_is_not_there_is_not_there(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(deferred.DEFERRED, "no_such_pkg", {})
    with pytest.raises(ModuleNotFoundError):
        import no_such_pkg  # type: ignore[import-not-found]  # noqa: F401
