"""`ftlab compare` as a command: on runs that were really trained, what it prints and writes, and what it refuses."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb_file
from wandb_file import logged
from written_runs import write_method, write_run

Command = Callable[..., Any]


def test_trained_runs_side_by_side(workplace: Path, ftlab: Command) -> None:
    for name, method, seeds in (("full", "Full", (1, 2)), ("zero", "ZeroShot", (1,))):
        for seed in seeds:
            where = ["--run.experiment", name, "--run.name", seed]
            words = ["-c", "tiny.yaml", "--model.method", method, "--seed_everything", seed, *where]
            assert ftlab("fit", *words).code == 0
            assert ftlab("test", *words).code == 0
    answer = ftlab(
        "compare", "runs/*", "--baseline", "zero", "--price", 2, "--json", "out/all.json", "--resamples", 500
    )
    assert answer.code == 0
    assert answer.err == "ftlab: wrote out/all.json\n"
    found = json.loads(Path("out/all.json").read_text())
    full, zero = found["rows"]
    assert (full["name"], zero["name"]) == ("full", "zero")
    assert (full["seeds"], zero["drawn"]) == (["1", "2"], False)
    scores = [json.loads(Path(f"runs/full/{seed}/scores.json").read_text())["test_rougeL"] for seed in (1, 2)]
    assert full["scores"] == pytest.approx(scores)
    assert found["records"] == 4
    assert full["cost"]["share"] == 1.0
    assert full["cost"]["tokens_per_second"] > 0
    assert full["cost"]["seconds_to_quality"] > 0
    assert full["cost"]["dollars"] > 0
    assert full["versus"]["verdict"] == "cannot be told apart"  # four answers change sides alike in one case of eight
    assert "4 records are few" in answer.out
    losses = json.loads(ftlab("compare", "runs/full", "runs/zero/1", "--metric", "loss", "--format", "json").out)
    assert losses["records"] == 4
    assert losses["rows"][0]["score"]["value"] < losses["rows"][1]["score"]["value"]
    for known_by in ("provenance.json", "the last checkpoint"):
        path = Path("runs/full/1/metrics.csv")
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
        answer = ftlab("compare", "runs/*")
        assert answer.code == 1, known_by
        assert "runs/full/1/metrics.csv ends at step 1, and the run has taken " in answer.err
        record = json.loads(Path("runs/full/1/provenance.json").read_text())
        assert record.pop("steps_taken", None) == (4 if known_by == "provenance.json" else None)
        Path("runs/full/1/provenance.json").write_text(json.dumps(record))


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods of three seeds each."""
    monkeypatch.chdir(tmp_path)
    write_method(Path("runs/full"), 70, method="ftlab.methods.Full")
    write_method(Path("runs/lora"), 74)


@pytest.mark.usefixtures("two")
def test_every_format_is_printed_and_written(ftlab: Command) -> None:
    files = {name: f"out/table.{name}" for name in ("markdown", "csv", "json", "latex")}
    options = [word for name, path in files.items() for word in (f"--{name}", path)]
    answer = ftlab("compare", "runs/*", *options)
    assert answer.code == 0
    assert "lora" in answer.out
    for name, path in files.items():
        printed = ftlab("compare", "runs/*", "--format", name)
        assert printed.code == 0
        assert printed.out == Path(path).read_text()
    assert len(list(csv.DictReader(Path(files["csv"]).read_text().splitlines()))) == 2


@pytest.mark.usefixtures("two")
def test_wandb_is_given_the_tables_the_figures_and_the_page(ftlab: Command, nobody_logged_in: None) -> None:
    answer = ftlab("compare", "runs/*", "--csv", "all.csv", "--wandb", "evidence")
    assert answer.code == 0, answer.err
    assert "W&B logs offline into wandb" in answer.err
    [file] = logged(".")
    [run] = wandb_file.of_kind(file, "run")
    assert (run.project, run.job_type) == ("evidence", "compare")
    assert "lora" in run.notes
    [row] = [row for row in wandb_file.rows(file) if "comparison.path" in row]
    files = file.parent / "files"
    told = json.loads((files / row["comparison.path"]).read_text())
    for line, written in zip(told["data"], csv.DictReader(Path("all.csv").read_text().splitlines()), strict=True):
        assert told["columns"] == list(written)
        assert ["" if value is None else str(value) for value in line] == list(written.values())
    quality = json.loads((files / row["quality.path"]).read_text())
    assert quality["columns"][:3] == ["method", "seeds", "test_rougeL"]
    assert [line[0] for line in quality["data"]] == ["full", "lora"]
    for figure in ("score_memory", "train_loss"):
        assert (files / row[f"{figure}.path"]).read_bytes().startswith(b"\x89PNG")
    assert "<title>test_rougeL: full, lora</title>" in (files / row["page.path"]).read_text()


@pytest.mark.usefixtures("two", "nobody_logged_in")
def test_a_page_that_cannot_be_made_is_not_laid_to_wandb(ftlab: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr("ftlab.cli.wandb_comparison.page", fails)
    with pytest.raises(ZeroDivisionError):
        ftlab("compare", "runs/*", "--wandb", "evidence")
    assert not list(Path("wandb").glob("offline-run-*"))


@pytest.mark.usefixtures("two")
def test_the_same_command_says_the_same(ftlab: Command) -> None:
    assert ftlab("compare", "runs/*").out == ftlab("compare", "runs/*").out


@pytest.mark.usefixtures("two")
def test_the_terminal_says_in_words_what_the_tables_mean(ftlab: Command) -> None:
    out = ftlab("compare", "runs/*", "--baseline", "runs/full/s1").out
    assert "less full" in out
    assert "lora is better than full: rougeL +" in out
    assert "95% intervals are over seeds and records (40 records, 10,000 draws)" in out
    assert "equal for all methods that are trained: steps, tokens, training time, peak memory" in out


@pytest.mark.usefixtures("two")
def test_runs_that_still_need_scores_are_listed(ftlab: Command) -> None:
    for rate in (0.1, 0.2):
        for seed in (1, 2):
            run = write_run(Path(f"runs/new/{rate}-{seed}"), [1.0], seed=seed, rate=rate, judged=False)
            (run / "scores.json").write_text(json.dumps({"val_loss": rate}))
    said = ftlab("compare", "runs/*", "--unscored").out.splitlines()
    assert said == [f"runs/new/{rate}-{seed}/config.yaml" for rate in (0.1, 0.2) for seed in (1, 2)]
    best = ftlab("compare", "runs/*", "--tuned", "model.optimizer.lr", "--unscored").out.splitlines()
    assert best == [f"runs/new/0.1-{seed}/config.yaml" for seed in (1, 2)]


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--markdown", "file/out.md"], "file/out.md cannot be written ("),
        (["--markdown", "out/o.md", "--json", "file/o.json"], "file/o.json cannot be written ("),
        (["--markdown", "out/o.md", "--json", "runs"], "runs cannot be written (Is a directory)"),
        (["--markdown", "out/o.md", "--plots", "file/p"], "file/p/score_memory.pdf cannot be written ("),
        (["--markdown", "out/o.md", "--wandb", "x"], "WANDB_MODE is disabled"),
    ],
)
def test_where_one_part_cannot_be_written_none_is(
    words: list[str], said: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    Path("file").touch()
    assert said in refused("compare", "runs/*", *words)
    assert sorted(path.name for path in Path().iterdir()) == ["file", "runs"]


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["elsewhere/*"], "no run matches elsewhere/*: give directories that hold a config.yaml"),
        (["runs"], "no run matches runs: "),
        (["runs/full"], "full is the only method (3 runs that differ in nothing but seeds)"),
        (["runs/*", "runs/unscored/s1"], "runs/unscored/s1 has no test scores: ftlab test -c"),
        (["runs/*", "--metric", "bleu"], "no run has test_bleu: there are test_loss, test_rougeL, val_loss"),
        (["runs/*", "runs/other/s1"], "were judged on other records"),
        (["runs/*", "--allow", "records"], "--allow records: there are data, network, decoding, tuning"),
        (["runs/*", "--baseline", "qlora"], "--baseline qlora: there is no such method; there are full; lora"),
        (["runs/*", "--formt", "csv"], "there is no option --formt: did you mean --format?"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence_and_no_report(
    words: list[str], said: str, refused: Callable[..., str]
) -> None:
    if "runs/unscored/s1" in words:
        write_run(Path("runs/unscored/s1"), [1.0], rate=0.5, judged=False)
    if "runs/other/s1" in words:
        run = write_run(Path("runs/other/s1"), [1.0] * 40, rate=0.5)
        path = run / "predictions" / "test.jsonl"
        path.write_text(path.read_text().replace('"p0"', '"another"'))
    assert said in refused("compare", *words, "--json", "out.json", "--markdown", "out.md")
    assert not Path("out.json").exists()
    assert not Path("out.md").exists()
