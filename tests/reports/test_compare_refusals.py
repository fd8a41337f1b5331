"""What `ftlab compare` refuses: runs of other things, scores that cannot be trusted, options that cannot be met."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
from written_runs import CURVES, FINGERPRINTS, predictions, write_method, write_run

from ftlab.errors import UserError
from ftlab.reports.compare import Comparison, Options, compare, find_runs
from ftlab.runs import Run


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def compared(*words: str, **options: Any) -> Comparison:
    return compare(find_runs(words or ["runs/*"]), Options(**({"resamples": 500} | options)))[0]


def refused(*words: str, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        compared(*words, **options)
    return str(error.value)


def other_data() -> dict[str, Any]:
    return {"record": {"fingerprints": FINGERPRINTS | {"data": {"rows": "r2", "train": "d2", "test": "d3"}}}}


@pytest.mark.parametrize(
    ("changed", "aspect", "said"),
    [
        (other_data(), "data", "data.rows is r1 there and r2 here, data.train is d1 there and d2 here"),
        (
            {"record": {"fingerprints": FINGERPRINTS | {"network": {"model.safetensors": "n2"}}}},
            "network",
            "network.model.safetensors is n1 there and n2 here",
        ),
        ({"config": {"model.network.random_weights": True}}, "network", "random_weights is False there and True here"),
        ({"config": {"model.decoding.max_new_tokens": 9}}, "decoding", "max_new_tokens is 8 there and 9 here"),
    ],
)
def test_runs_of_something_else_are_refused_and_the_difference_shown(
    changed: dict[str, Any], aspect: str, said: str
) -> None:
    write_run(Path("runs/x/a"), [1, 2])
    write_run(Path("runs/x/b"), [1, 2], rate=0.5, **changed)
    sentence = refused("runs/x")
    assert f"runs/x/a and runs/x/b differ in their {aspect}: " in sentence
    assert said in sentence
    found = compared("runs/x", allowed=[aspect])
    assert any(said in note for note in found.notes)


def test_a_loss_does_not_ask_how_answers_were_decoded() -> None:
    write_run(Path("runs/x/a"), [1, 2])
    write_run(Path("runs/x/b"), [1, 2], rate=0.5, config={"model.decoding.max_new_tokens": 9})
    assert compared("runs/x", metric="loss").metric == "test_loss"


def test_a_loss_on_other_rows_is_refused_whatever_is_allowed() -> None:
    write_run(Path("runs/x/a"), [1, 2])
    fingerprints = FINGERPRINTS | {"data": {"rows": "r2", "train": "d1", "test": "d4"}}
    write_run(Path("runs/x/b"), [1, 2], rate=0.5, record={"fingerprints": fingerprints})
    assert "data.test is d3 there and d4 here" in refused("runs/x", metric="loss", allowed=["data"])


def test_other_test_records_are_refused_whatever_is_allowed() -> None:
    write_run(Path("runs/x/a"), [1, 2, 3])
    write_run(Path("runs/x/b"), [1, 2], rate=0.5)
    run = write_run(Path("runs/x/c"), [1, 2, 3], rate=0.6)
    assert "judged on 3 records and runs/x/b on 2" in refused("runs/x/a", "runs/x/b", allowed=["data"])
    path = run / "predictions" / "test.jsonl"
    path.write_text(path.read_text().replace('"r1"', '"other"'))
    assert refused("runs/x/a", "runs/x/c") == (
        "runs/x/a and runs/x/c were judged on other records: the references of record 2 is "
        '["r1"] there and ["other"] here; judge both on the same'
    )


def test_predictions_that_are_not_those_of_the_scores_are_refused() -> None:
    write_run(Path("runs/x/a"), [1, 2, 3])
    run = write_run(Path("runs/x/b"), [1, 2, 3], rate=0.5)
    path = run / "predictions" / "test.jsonl"
    path.write_text(path.read_text().replace('"rougeL": 3.0', '"rougeL": 4.0'))
    assert "comes to a rougeL of 2.3333, and scores.json says 2.0000" in refused("runs/x")
    path.write_text(path.read_text()[:-9])
    assert "test.jsonl is damaged" in refused("runs/x")
    path.unlink()
    assert "has a test_rougeL but no test.jsonl: ftlab test -c runs/x/b/config.yaml writes it again" in refused(
        "runs/x"
    )


def test_an_answer_may_hold_what_unicode_calls_the_end_of_a_line() -> None:
    for name, rate in {"a": 0.1, "b": 0.2}.items():
        run = Run(write_run(Path(f"runs/x/{name}"), [1, 2, 3], rate=rate))
        rows = predictions([1, 2, 3])
        rows[1]["prediction"] = "one\u2028two\u2029three\u0085four\rfive"
        run.write_predictions("test", rows)
    assert compared("runs/x").records == 3


@pytest.mark.parametrize(
    ("lines", "every", "refused_there"), [(5, 10, False), (4, 10, True), (4, 11, False), (2, None, True)]
)
def test_curves_that_were_cut_short_are_refused(lines: int, every: int | None, refused_there: bool) -> None:
    write_run(Path("runs/x/a"), [1, 2])
    curves = "".join(CURVES.splitlines(keepends=True)[:lines])
    config = {"trainer.log_every_n_steps": every}
    write_run(Path("runs/x/b"), [1, 2], rate=0.5, curves=curves, config=config, record={"steps_taken": 100})
    if refused_there:
        step = {4: 90, 2: 10}[lines]
        assert refused("runs/x").startswith(
            f"runs/x/b/metrics.csv ends at step {step}, and the run has taken 100: it was cut short; "
        )
        Path("runs/x/b/metrics.csv").unlink()
    assert [row.cost.gap is None for row in compared("runs/x").rows] == [False, refused_there]


def test_scores_of_before_the_end_of_training_are_refused() -> None:
    write_run(Path("runs/x/a"), [1, 2, 3])
    run = write_run(Path("runs/x/b"), [1, 2, 3], rate=0.5)
    path = run / "predictions" / "test.jsonl"
    os.utime(path, (path.stat().st_mtime - 3600,) * 2)
    assert f"{path} is older than the end of training: the run has been trained on since" in refused("runs/x")


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (None, "no run has test_… scores: ftlab test -c runs/x/a/config.yaml makes"),
        ("rougeL", "no run has test_… scores: ftlab test -c runs/x/a/config.yaml makes"),
        ("val_rougeL", "no run has val_… scores: ftlab validate -c runs/x/a/config.yaml makes"),
        (
            "retention_k_loss_change",
            "no run has retention_k_loss_change: ftlab test -c runs/x/a/config.yaml with the set's file makes",
        ),
    ],
)
def test_where_no_run_has_scores_it_is_said_what_makes_them(metric: str | None, said: str) -> None:
    for name, rate in {"a": 0.1, "b": 0.2}.items():
        run = write_run(Path(f"runs/x/{name}"), [1, 2], rate=rate, judged=False)
        (run / "scores.json").write_text("{}")
    assert refused("runs/x", metric=metric, skip_unscored=True).startswith(said)


def test_losses_of_before_the_end_of_training_are_refused_though_another_run_has_kept_none() -> None:
    for name, rate in {"a": 0.1, "b": 0.2}.items():
        write_run(Path(f"runs/x/{name}"), [1, 2], rate=rate)
    Run(Path("runs/x/b")).write_predictions("test_losses", [{"record": "1", "loss": 2.4, "tokens": 2}])
    assert compared("runs/x", metric="loss").records is None
    path = Path("runs/x/b/predictions/test_losses.jsonl")
    os.utime(path, (path.stat().st_mtime - 3600,) * 2)
    assert f"{path} is older than the end of training: the run has been trained on since" in refused(
        "runs/x", metric="loss"
    )


def test_what_a_reader_should_know_is_noted() -> None:
    made = {"hardware": {"cpu": "x"}, "versions": {"torch": "2.13", "peft": "1"}, "ftlab": {"commit": "c1"}}
    write_run(Path("runs/x/a"), [1, 2, 3], record=made)
    changes = [{"trainer.max_steps": {"before": 50, "now": 100}}]
    other = {"hardware": {"cpu": "y"}, "versions": {"torch": "2.14", "peft": "1"}, "ftlab": {"commit": "c2"}}
    write_run(Path("runs/x/b"), [1, 2, 3], rate=0.5, record=other | {"changes": changes})
    notes = compared("runs/x").notes
    assert "runs/x/b was gone on with under another configuration: trainer.max_steps" in notes
    assert "runs were made on different machines: time, memory and dollars compare loosely" in notes
    assert "runs were made by different versions of ftlab, torch" in notes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "bleu"}, "no run has test_bleu: there are test_loss, test_rougeL, val_loss"),
        ({"metric": "val_rougeL"}, "no run has val_rougeL: there are"),
        ({"baseline": "nothing"}, "--baseline nothing: there is no such method; there are a; b"),
        ({"confidence": 95}, "--confidence is 95: give a share such as 0.95"),
        ({"resamples": 10}, "--resamples is 10: give 100 or more"),
        ({"price": -1.0}, "--price is -1.0"),
        ({"price": math.inf}, "--price is inf"),
        ({"quality": math.nan}, "--quality is nan: give a validation loss"),
    ],
)
def test_options_that_cannot_be_met(options: dict[str, Any], said: str) -> None:
    write_run(Path("runs/x/a"), [1, 2])
    write_run(Path("runs/x/b"), [1, 2], rate=0.5)
    assert said in refused("runs/x", **options)


def test_a_metric_that_one_run_lacks() -> None:
    write_run(Path("runs/x/a"), [1, 2], more_scores={"test_words": 1.0})
    write_run(Path("runs/x/b"), [1, 2], rate=0.5)
    assert refused("runs/x", metric="words").startswith("runs/x/b has no test_words: it has test_loss, test_rougeL")


def test_the_metric_is_rouge_or_what_there_is() -> None:
    runs = [write_run(Path(f"runs/x/{name}"), [1, 2], rate=rate) for name, rate in {"a": 0.1, "b": 0.2}.items()]
    assert compared("runs/x").metric == "test_rougeL"
    for run in runs:
        (run / "scores.json").write_text('{"val_loss": 1.0, "test_loss": 1.0, "test_own_words": 1.5}')
        text = (run / "predictions/test.jsonl").read_text()
        (run / "predictions/test.jsonl").write_text(text.replace("rougeL", "own_words"))
    assert compared("runs/x").metric == "test_own_words"
    assert compared("runs/x", metric="own_words").metric == "test_own_words"
    (runs[0] / "scores.json").write_text('{"test_loss": 1.0}')
    assert compared("runs/x").metric == "test_loss"
    (runs[1] / "scores.json").write_text('{"test_own_words": 1.0}')
    assert "have no test score in common" in refused("runs/x")


def test_a_score_that_is_no_number_is_refused() -> None:
    write_run(Path("runs/x/a"), [1, 2])
    write_run(Path("runs/x/b"), [1, 2], rate=0.5, more_scores={"test_loss": math.inf})
    assert "runs/x/b has test_loss inf" in refused("runs/x", metric="loss")


def test_one_method_alone_is_refused() -> None:
    write_method(Path("runs/a"), 70)
    assert refused("runs/a").startswith("a is the only method (3 runs that differ in nothing but seeds)")


def test_runs_without_scores_or_end_are_refused_or_left_out() -> None:
    write_run(Path("runs/x/a"), [1, 2])
    write_run(Path("runs/x/b"), [1, 2], rate=0.5)
    write_run(Path("runs/x/c"), [1, 2], rate=0.6, judged=False)
    assert refused("runs/x").startswith("runs/x/c has no test scores: ftlab test -c runs/x/c/config.yaml makes them")
    write_run(Path("runs/x/d"), [1, 2], rate=0.7, state="preempted")
    assert refused("runs/x").startswith("runs/x/d has not come to its end (it is preempted): let ftlab fit finish it")
    found = compared("runs/x", skip_unscored=True)
    assert [row.name for row in found.rows] == ["a", "b"]
    assert found.notes[:2] == (
        "left out, as they have not come to their end: runs/x/d",
        "left out, as they have no test_… scores: runs/x/c",
    )
    assert refused("runs/x/d", skip_unscored=True).startswith("none of the 1 runs has come to its end")
