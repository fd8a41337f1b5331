"""What a person meets in a terminal: a first line at once, a clean end by Ctrl-C, nothing where nobody looks."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from terminals import Terminal, without_codes
from written_runs import write_method, write_run

from ftlab import cli
from ftlab.cli import main
from ftlab.console import draws_bars
from ftlab.networks import Network

SLOW = """
import pathlib, time
def wait(columns):
    pathlib.Path("reached").touch()
    time.sleep(60)
    return columns
"""


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ftlab", *words]

    def heeds_ctrl_c() -> None:  # a shell's background jobs do not, nor what they start
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeds_ctrl_c)


def wait_for(done: Path, process: subprocess.Popen[str]) -> None:
    while not done.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.slow
def test_ctrl_c_in_prepare_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Network, data_path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("slow.py").write_text(SLOW)
    options = ("--data.path", data_path, "--data.function", "slow.wait", "--model.network.path", network.path)
    process = start("prepare", *options, "--out", "out")
    wait_for(Path("reached"), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert (out, err) == ("", "ftlab: stopped by the user\n")
    assert not list(Path("out").glob("*"))


def test_ctrl_c_while_fit_is_being_imported(workplace: Path) -> None:
    process = start("fit", "-c", "tiny.yaml")
    assert process.stderr
    began = time.monotonic()
    assert process.stderr.readline() == "ftlab: fit tiny.yaml: importing torch and Lightning\n"
    assert time.monotonic() - began < 5  # a second on a machine that does nothing else
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert (out, err) == ("", "ftlab: stopped by the user\n")


WAITS = """
import pathlib, time
from lightning.pytorch import Callback

class Waits(Callback):
    def on_test_batch_start(self, *_, **__):
        pathlib.Path("reached").touch()
        time.sleep(60)
"""


@pytest.mark.slow
def test_ctrl_c_in_test_is_one_sentence(workplace: Path, ftlab: Callable[..., Any]) -> None:
    assert ftlab("fit", "-c", "tiny.yaml", "--run.name", "a").code == 0
    Path("slow.py").write_text(WAITS)
    process = start("test", "-c", "runs/tiny/a/config.yaml", "--trainer.callbacks+=slow.Waits")
    wait_for(Path("reached"), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1] == "ftlab: stopped by the user"
    assert "Detected" not in err
    assert (
        not Path("runs/tiny/a/scores.json").exists() or "test_loss" not in Path("runs/tiny/a/scores.json").read_text()
    )


@pytest.mark.slow
def test_ctrl_c_while_compare_is_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    process = start("compare", "runs/a", "runs/b")
    while "numpy" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert (out, err) == ("", "ftlab: stopped by the user\n")


def test_ctrl_c_of_which_a_half_made_module_makes_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def half_made(*_: Any) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as stop:
            raise AttributeError("module 'numpy._core' has no attribute '_multiarray_umath'") from stop

    monkeypatch.setattr(cli, "_imported", half_made)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["ls"]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr() == ("", "ftlab: stopped by the user\n")


@pytest.mark.parametrize(
    "words", [["--help"], ["schema"], ["ls"], ["fit", "-c", "tiny.yaml", "--print_config"]], ids=" ".join
)
def test_output_that_nobody_reads_ends_quietly(words: list[str], workplace: Path) -> None:
    write_run(Path("runs/a/one"), [1.0])
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ftlab", *words]
    with os.fdopen(writer, "w") as nobody:
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_programs_read_what_prepare_and_diff_print(workplace: Path, ftlab: Callable[..., Any]) -> None:
    prepared = ftlab("prepare", "-c", "tiny.yaml", "--out", "out", "--json")
    assert prepared.code == 0, prepared.err
    assert json.loads(prepared.out) == json.loads(Path("out/data_card.json").read_text())
    for name, r in {"a": 2, "b": 4}.items():
        run = Path("runs/e") / name
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(f"model: {{method: {{r: {r}}}}}\nrun: {{name: {name}}}\n")
        (run / "provenance.json").write_text("{}")
    apart = json.loads(ftlab("diff", "runs/e/a", "runs/e/b", "--json").out)
    assert apart["runs"] == ["runs/e/a", "runs/e/b"]
    assert apart["sections"]["configuration"]["differing"] == {"model.method.r": [2, 4]}
    assert apart["sections"]["configuration"]["same"] is False
    assert apart["sections"]["scores"]["same"] is None


def test_a_digest_of_data_says_how_far_it_is(at_once: None, terminal: Terminal, tmp_path: Path) -> None:
    from ftlab.data.sources import open_source

    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 100_000)
    digest = open_source(str(tmp_path / "rows.jsonl")).splits["train"].fingerprint()
    assert digest == open_source(str(tmp_path / "rows.jsonl")).splits["train"].fingerprint()
    assert "taking the digest of rows.jsonl" in without_codes(terminal.read())


@pytest.mark.parametrize(("term", "drawn"), [("xterm", True), ("dumb", False)])
def test_a_terminal_that_cannot_redraw_a_line_gets_no_bars(
    term: str, drawn: bool, monkeypatch: pytest.MonkeyPatch, terminal: Terminal
) -> None:
    monkeypatch.setenv("TERM", term)
    assert draws_bars(terminal.file) is drawn


def test_export_says_how_far_it_is(
    finished: Callable[[str], Path], ftlab: Callable[..., Any], at_once: None, terminal: Terminal
) -> None:
    run = finished("lora")
    assert ftlab("export", run, "out").code == 0
    seen = without_codes(terminal.read())
    assert f"scoring {run}" in seen
    assert "10/10 records" in seen  # five, by the run and by the export


def test_plan_and_compare_say_how_far_they_are(
    workplace: Path, ftlab: Callable[..., Any], at_once: None, terminal: Terminal
) -> None:
    table = ("--device", "16 GB", "--batches", "1,2")
    assert ftlab("plan", "-c", "tiny.yaml", *table).code == 0
    write_method(Path("runs/full"), 70, method="ftlab.methods.Full")
    write_method(Path("runs/lora"), 74)
    assert ftlab("compare", "runs/*").code == 0
    seen = without_codes(terminal.read())
    assert "planning" in seen
    assert "2/2 plans" in seen
    assert "/2 methods" in seen
    assert "/1 methods" in seen


def test_a_set_without_validation_and_too_many_workers_cost_one_line(workplace: Path) -> None:
    """Not the three lines and the two that Lightning and torch warn with, in a process of its own, where they would."""
    cores = len(os.sched_getaffinity(0))
    Path("alone").mkdir()
    rows = [{"prompt": f"Is it {n}?", "completion": f"It is {n}."} for n in range(8)]
    Path("alone/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"data.path": "alone", "data.workers": cores + 1, "trainer.max_steps": 2, "trainer.val_check_interval": 1}
    options |= {"data.splits.validation": 0.0, "data.splits.test": 0.0, "wandb.mode": "disabled"}
    words = ["fit", "-c", "tiny.yaml", *(f"--{key}={value}" for key, value in options.items())]
    done = subprocess.run([sys.executable, "-m", "ftlab", *words], capture_output=True, text=True, check=True)
    said = done.stderr.splitlines()
    assert all(line.startswith("ftlab: ") for line in said), done.stderr
    assert [line for line in said if "workers" in line] == [
        f"ftlab: data.workers is {cores + 1}, with {cores} cores for it: fewer are faster"
    ]
