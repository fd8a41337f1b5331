"""Methods side by side: which runs are one, what each number is, against numbers written by hand."""

import csv
import io
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
from scipy import stats
from written_runs import COST, CURVES, write_method, write_run

from ftlab.errors import UserError
from ftlab.reports.compare import Comparison, Group, Options, compare, find_runs, into_groups
from ftlab.reports.compare.comparison import in_words
from ftlab.reports.compare.curves import seconds_to
from ftlab.reports.compare.series import bands
from ftlab.reports.compare.tables import csv_text, json_text, latex, markdown, sentences, tables
from ftlab.runs import Run


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def compared(*words: str, **options: Any) -> Comparison:
    return compare(find_runs(words or ["runs/*"]), Options(**({"resamples": 500} | options)))[0]


def grouped(*words: str, tuned: Sequence[str] = ()) -> list[Group]:
    return into_groups(find_runs(words), tuned)


def refused(*words: str, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        compared(*words, **options)
    return str(error.value)


# ---------------------------------------------------------------- which runs, and which are one


def test_runs_are_found_by_directory_experiment_and_pattern() -> None:
    write_method(Path("runs/a"), 70)
    write_method(Path("runs/b"), 72, method="ftlab.methods.Full")
    Path("runs/a/logs").mkdir()  # as a sweep has beside its runs
    found = {
        word: [str(run) for run in find_runs([word])] for word in ("runs/a/s1", "runs/a", "runs/*", "runs/*/s[12]")
    }
    assert found["runs/a/s1"] == ["runs/a/s1"]
    assert found["runs/a"] == ["runs/a/s1", "runs/a/s2", "runs/a/s3"]
    assert found["runs/*"] == [f"runs/{method}/s{seed}" for method in "ab" for seed in (1, 2, 3)]
    assert found["runs/*/s[12]"] == [f"runs/{method}/s{seed}" for method in "ab" for seed in (1, 2)]
    assert len(find_runs(["runs/a", "runs/a/s1", "runs/*"])) == 6


def test_runs_that_differ_in_seeds_and_places_are_one_method() -> None:
    for seed in (1, 2):
        write_run(Path(f"runs/x/lora{seed}"), [1, 2], seed=seed, config={"data.path": f"disk{seed}"})
    write_run(Path("runs/x/order"), [1, 2], config={"seeds.order": 7})
    write_run(Path("runs/x/rate"), [1, 2], rate=0.5)
    one, other = grouped("runs/x")
    assert one.seeds == ("1", "2", "1, order 7")
    assert [str(run) for run in other.runs] == ["runs/x/rate"]


def test_methods_are_named_by_what_tells_them_apart() -> None:
    for seed in (1, 2):
        write_run(Path(f"runs/x/a{seed}"), [1, 2], seed=seed)
        write_run(Path(f"runs/x/b{seed}"), [1, 2], seed=seed, rate=0.5)
        write_run(Path(f"runs/x/c{seed}"), [1, 2], seed=seed, method="ftlab.methods.Full")
        write_run(Path(f"runs/full/c{seed}"), [1, 2], seed=seed, method="ftlab.methods.Full")
    assert [group.name for group in grouped("runs/x")] == ["LoRA, lr 0.01", "LoRA, lr 0.5", "Full"]
    assert [group.name for group in grouped("runs/x/[ab]*")] == ["lr 0.01", "lr 0.5"]
    assert [group.name for group in grouped("runs/x/a*", "runs/full")] == ["x", "full"]
    assert [group.name for group in grouped("runs/x/a1", "runs/x/c1")] == ["a1", "c1"]
    assert [group.name for group in grouped("mine=runs/x/a*", "Full FT=runs/full")] == ["mine", "Full FT"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a=runs/x", "runs/y"], "a would be the name of two methods, as runs/x/s1 and runs/x/t1 differ in"),
        (
            ["a=runs/x/s1", "b=runs/x/s2", "runs/y"],
            "runs/x/s1 and runs/x/s2 differ in their seeds alone, but are named a and b: ",
        ),
        (["a=runs/x/s1", "b=runs/x/s1"], "runs/x/s1 is named twice, a and b"),
        (["runs/x/s*", "runs/x/copy"], "are one run made twice (seed 1, the same configuration)"),
    ],
)
def test_names_and_copies_that_would_mislead_are_refused(words: list[str], said: str) -> None:
    write_run(Path("runs/x/s1"), [1, 2])
    write_run(Path("runs/x/s2"), [1, 2], seed=2)
    write_run(Path("runs/x/t1"), [1, 2], rate=0.5)
    write_run(Path("runs/y/s1"), [1, 2], method="ftlab.methods.Full")
    if words[-1] == "runs/x/copy":
        write_run(Path("runs/x/copy"), [1, 2])
    assert said in refused(*words)


# ---------------------------------------------------------------- quality


def test_scores_intervals_and_tests_are_scipys() -> None:
    write_method(Path("runs/full"), 70, method="ftlab.methods.Full")
    write_method(Path("runs/lora"), 74)
    found = compared(baseline="full")
    full, lora = found.rows
    assert found.metric == "test_rougeL"
    assert found.records == 40
    assert full.versus is None
    assert lora.versus is not None
    scores = [
        [json.loads(Path(f"runs/{name}/s{seed}/scores.json").read_text())["test_rougeL"] for seed in (1, 2, 3)]
        for name in ("full", "lora")
    ]
    assert lora.scores == pytest.approx(scores[1])
    assert lora.score.value == pytest.approx(numpy.mean(scores[1]))
    expected = stats.ttest_rel(scores[1], scores[0])
    interval = expected.confidence_interval(0.95)
    assert lora.versus.tests.seeds == pytest.approx(expected.pvalue)
    assert lora.versus.difference.over_seeds is not None
    assert lora.versus.difference.over_seeds.low == pytest.approx(interval.low)
    assert lora.versus.corrected == lora.versus.tests  # of one comparison


def test_methods_are_better_worse_or_cannot_be_told_apart() -> None:
    for name, middle in {"base": 70.0, "better": 80.0, "worse": 60.0, "like": 70.1}.items():
        write_method(Path("runs") / name, middle, seeds=4, method=f"mine.{name}")
    found = compared(baseline="base")
    verdicts = {row.name: row.versus.verdict for row in found.rows if row.versus}
    assert verdicts == {"better": "better", "worse": "worse", "like": "cannot be told apart"}
    said = sentences(found)
    assert any(line.startswith("better is better than base: rougeL +") for line in said)
    assert any(line.startswith("like and base cannot be told apart by rougeL: ") for line in said)
    for row in found.rows:
        if row.versus:
            assert row.versus.p is not None
            assert row.versus.tests.both is not None
            assert row.versus.p >= row.versus.tests.both  # Holm's


def test_of_a_loss_lower_is_better_and_seeds_alone_tell() -> None:
    for name, losses in {"a": [1.0, 1.1, 1.05], "b": [0.5, 0.62, 0.53]}.items():
        for seed, loss in enumerate(losses):
            write_run(Path(f"runs/{name}/{seed}"), [1], seed=seed, method=name, more_scores={"test_loss": loss})
    found = compared(metric="loss")
    assert found.metric == "test_loss"
    assert found.records is None
    versus = found.rows[1].versus
    assert versus is not None
    assert versus.verdict == "better"
    assert versus.p == pytest.approx(stats.ttest_rel([0.5, 0.62, 0.53], [1.0, 1.1, 1.05]).pvalue)
    assert versus.tests.randomisation is None
    assert any("not all runs have kept test_loss for each record" in note for note in found.notes)
    assert compared(metric="val_loss").rows[0].score.value == 1.0


def test_losses_of_records_weigh_by_tokens(tmp_path: Path) -> None:
    nats, tokens = {"a": [10.0, 40.0, 6.0], "b": [11.0, 30.0, 9.0]}, [10, 20, 4]
    for name, rate in {"a": 0.1, "b": 0.2}.items():
        run = write_run(
            Path(f"runs/x/{name}"),
            [1.0],
            rate=rate,
            more_scores={"test_loss": sum(nats[name]) / 34, "test_perplexity": 0},
        )
        lines = [
            {"record": f"test.jsonl:{n}", "loss": loss, "tokens": count}
            for n, (loss, count) in enumerate(zip(nats[name], tokens, strict=True))
        ]
        (run / "predictions/test_losses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = compared("runs/x", metric="loss", resamples=20_000)
    versus = found.rows[1].versus
    assert found.records == 3
    assert versus is not None
    assert versus.difference.value == pytest.approx(50 / 34 - 56 / 34)
    draws = [
        sum(nats["b"][n] - nats["a"][n] for n in draw) / sum(tokens[n] for n in draw)
        for draw in itertools.product(range(3), repeat=3)
    ]
    further = sum(abs(draw - versus.difference.value) >= abs(versus.difference.value) - 1e-9 for draw in draws)
    assert versus.tests.bootstrap == pytest.approx(further / 27, abs=0.01)
    assert "comes to a perplexity of" in refused("runs/x", metric="perplexity")
    path = tmp_path / "runs/x/b/predictions/test_losses.jsonl"
    path.write_text(path.read_text().replace('"tokens": 20', '"tokens": 21'))
    assert "the tokens of record 2 is 20 there and 21 here" in refused("runs/x", metric="loss")


def test_one_seed_is_over_records_alone_and_says_so() -> None:
    write_run(Path("runs/x/a"), [50.0, 60, 70, 80] * 10)
    write_run(Path("runs/x/b"), [51.0, 61, 71, 83] * 10, rate=0.5)
    found = compared("runs/x")
    one, other = found.rows
    assert one.score.over_records is not None
    assert (one.score.over_seeds, one.score.over_both) == (None, None)
    assert other.versus is not None
    assert (other.versus.tests.seeds, other.versus.tests.both) == (None, None)
    assert other.versus.sentence.endswith("; of other seeds this says nothing")
    assert any(note.startswith("a and b have one seed each: nothing is said of other seeds") for note in found.notes)


def test_of_one_seed_without_records_nothing_is_said_to_be_over_seeds() -> None:
    write_run(Path("runs/x/a"), [1, 2])
    write_run(Path("runs/x/b"), [1, 2], rate=0.5)
    notes = compared("runs/x", metric="loss").notes
    assert notes[0].endswith("nothing is said of other seeds, and no interval and no test of them can be given")
    assert "not all runs have kept test_loss for each record" in notes
    assert not any("over seeds alone" in note for note in notes)


def test_a_method_that_trains_nothing_needs_no_seeds() -> None:
    nothing = {"trainable_parameters": 0, "training_seconds": 0.0, "total_tokens": 0, "supervised_tokens": 0}
    write_run(Path("runs/zero/s1"), [20.0, 30, 25, 35] * 10, method="mine.Zero", cost=nothing, curves="step\n")
    write_method(Path("runs/lora"), 70)
    found = compared(baseline="zero")
    zero, lora = found.rows[1], found.rows[0]
    assert not zero.drawn
    assert zero.cost.tokens_per_second is None
    assert lora.versus is not None
    zero_score = zero.score.value
    assert lora.versus.tests.seeds == pytest.approx(stats.ttest_1samp(lora.scores, zero_score).pvalue)
    assert not any("one seed" in note for note in found.notes)
    assert (
        "95% intervals are over seeds and records, or records alone of a method without seeds (40 records, 500 draws)"
    ) in sentences(found)


def test_a_method_that_draws_its_answers_is_not_trained_for_that() -> None:
    nothing = {"trainable_parameters": 0, "training_seconds": 0.0, "total_tokens": 0, "supervised_tokens": 0}
    warm = {"model.decoding.temperature": 0.7}
    for seed in (1, 2):
        place, scores = Path(f"runs/zero/{seed}"), [20.0 + seed, 30]
        curves = "step,val_loss\n0,3.0\n"
        write_run(place, scores, seed=seed, method="Zero", config=warm, cost=nothing, curves=curves)
    for rate in (0.1, 0.2):
        for method in ("a", "b"):
            write_run(Path(f"runs/{method}/{rate}"), [40.0, 50], method=method, rate=rate, config=warm)
    found = compared("runs/a", "runs/b", "runs/zero", tuned=["model.optimizer.lr"])
    assert [row.drawn for row in found.rows] == [True, True, True]
    assert [row.trained for row in found.rows] == [True, True, False]
    assert found.quality == 0.7  # not what the network came to before any training
    assert found.equal == ("steps", "tokens", "training time", "peak memory")
    quality, _, cost = tables(found)
    assert quality.rows[2][1] == "2"
    assert [cost.rows[2][cost.header.index(name)] for name in ("training", "to quality")] == ["", ""]
    assert {band.name for band in bands(compare(find_runs(["runs/*/0.1", "runs/zero"]), Options())[1], "val_loss")} == {
        "a",
        "b",
    }


# ---------------------------------------------------------------- cost


def test_what_runs_cost_by_hand() -> None:
    write_run(Path("runs/x/a"), [1, 2], cost={"peak_memory_bytes": 1e9})
    write_run(Path("runs/x/b"), [1, 2], rate=0.5)
    cost = compared("runs/x", price=3.0).rows[0].cost
    assert cost.share == 0.25
    assert cost.bytes == 2e6
    assert cost.peak_memory == 1e9
    assert cost.tokens_per_second == 500.0
    assert cost.device_hours == 0.5
    assert cost.dollars == 1.5
    assert cost.steps == 100
    assert cost.gap == pytest.approx(0.7 - 0.4)  # of the steps after the ninetieth
    assert cost.seconds_to_quality == 100.0  # both runs came to 0.7 at the end
    assert compared("runs/x", quality=1.6).rows[0].cost.seconds_to_quality == 30.0
    assert compared("runs/x", quality=0.1).rows[0].cost.reached == 0


def test_steps_are_those_that_were_taken_and_not_those_of_the_last_row() -> None:
    write_run(Path("runs/x/said"), [1, 2], record={"steps_taken": 104}, config={"trainer.log_every_n_steps": 10})
    run = Run(write_run(Path("runs/x/kept"), [1, 2], rate=0.5))
    (run.directory / "checkpoints").mkdir()
    kept = run.directory / "checkpoints" / "last-00000107-0123456789abcdef.ckpt"
    kept.touch()
    run.last.symlink_to(kept.name)
    write_run(Path("runs/x/rows"), [1, 2], rate=0.6)
    write_run(Path("runs/x/none"), [1, 2], rate=0.7, record={"steps_taken": 40}, curves="step\n")
    steps = {row.name: row.cost.steps for row in compared("runs/x").rows}
    assert steps == {"said": 104, "kept": 107, "rows": 100, "none": 40}


def test_device_hours_are_of_all_sessions_and_devices() -> None:
    sessions = [
        {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T01:00:00+00:00", "devices": {"number": 4}},
        {"started": "2026-01-02T00:00:00+00:00", "ended": "2026-01-02T00:30:00+00:00", "devices": {"number": 2}},
    ]
    for name, rate in {"a": 0.1, "b": 0.2}.items():
        write_run(Path(f"runs/x/{name}"), [1, 2], rate=rate)
        path = Path(f"runs/x/{name}/provenance.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sessions": sessions}))
        sessions = [{key: value for key, value in session.items() if key != "ended"} for session in sessions]
    a, b = compared("runs/x", price=1.0).rows
    assert a.cost.device_hours == a.cost.dollars == 5.0
    assert b.cost.device_hours is None  # it was killed, and nobody knows when


def test_quality_is_what_every_run_came_to() -> None:
    write_run(Path("runs/x/a"), [1, 2])
    write_run(Path("runs/x/b"), [1, 2], rate=0.5, curves="step,train_loss,val_loss\n10,2,1.6\n20,2,1.5\n")
    found = compared("runs/x")
    assert found.quality == 1.5
    assert found.rows[0].cost.seconds_to_quality == 30.0


def test_time_to_quality_leaves_out_validation() -> None:
    rows = [
        {"step": 1, "total_tokens": 100, "tokens_per_second": 50},
        {"step": 2, "val_loss": 2.0},
        {"step": 3, "total_tokens": 200, "tokens_per_second": 25, "val_loss": 1.0},
    ]
    assert seconds_to(rows, 2.0) == 4.0  # the second step as the first
    assert seconds_to(rows, 1.5) == 6.0
    assert seconds_to(rows, 0.5) is None


def test_time_to_quality_before_any_rate_is_known() -> None:
    rows = [
        {"step": 5, "val_loss": 1.0},
        {"step": 10, "total_tokens": 100, "tokens_per_second": 50},
        {"step": 15, "val_loss": 0.5},
        {"step": 20, "total_tokens": 200, "tokens_per_second": 25},
    ]
    assert seconds_to(rows, 1.0) == 1.0  # half of the two seconds up to the tenth step
    assert seconds_to(rows, 0.5) == 3.0
    assert seconds_to([{"step": 5, "val_loss": 1.0}, {"step": 20, "val_loss": 0.9}], 1.0, 40.0) == 10.0
    assert seconds_to([{"step": 5, "val_loss": 1.0}], 1.0) is None
    assert seconds_to([{"step": 0, "val_loss": 1.0}], 1.0) == 0.0


def test_what_was_equal_is_said() -> None:
    write_method(Path("runs/a"), 70)
    write_method(Path("runs/b"), 70, method="b", cost={"training_seconds": 150.0, "peak_memory_bytes": 3.03e9})
    assert compared().equal == ("steps", "tokens", "peak memory")


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_curve_that_is_no_number_leaves_its_costs_out(number: str) -> None:
    write_run(Path("runs/x/a"), [1, 2], curves=CURVES.replace("500,0.7", f"500,{number}"))
    write_run(Path("runs/x/b"), [1, 2], rate=0.5)
    found = compared("runs/x")
    assert [row.cost.gap for row in found.rows] == [None, pytest.approx(0.3)]
    assert found.quality == 1.5

    def no_number(said: str) -> None:
        raise AssertionError(said)

    json.loads(json_text(found), parse_constant=no_number)


# ---------------------------------------------------------------- tuned values


def tuned_runs(place: str, method: str, losses: dict[float, float]) -> None:
    for rate, loss in losses.items():
        for seed in (1, 2):
            scores = ((loss if math.isfinite(loss) else 0) + numpy.arange(10)).tolist()
            run = write_run(Path(f"{place}/{rate}-{seed}"), scores, seed=seed, method=method, rate=rate)
            (run / "scores.json").write_text(json.dumps({"test_rougeL": numpy.mean(scores), "val_loss": loss}))


def test_each_method_has_the_best_value_by_validation() -> None:
    tuned_runs("runs/a", "a", {0.1: 3.0, 0.01: 1.0, 0.001: 2.0})
    tuned_runs("runs/b", "b", {0.1: 2.5, 0.01: 2.6, 0.001: 2.7})
    found = compared(tuned=["model.optimizer.lr"])  # as a sweep file has it
    assert [row.name for row in found.rows] == ["a", "b"]
    assert [dict(row.tuned) for row in found.rows] == [
        {"model.optimizer.init_args.lr": 0.01},
        {"model.optimizer.init_args.lr": 0.1},
    ]
    assert [row.tried for row in found.rows] == [3, 3]
    assert found.rows[0].runs == ("runs/a/0.01-1", "runs/a/0.01-2")
    assert "lr 0.01 | 3 |" in markdown(found)


def test_a_value_that_diverges_is_not_the_best() -> None:
    tuned_runs("runs/a", "a", {0.1: math.nan, 0.01: 1.0})
    tuned_runs("runs/b", "b", {0.1: 2.0, 0.01: math.inf})
    assert [*compared(tuned=["model.optimizer.lr"]).rows[0].tuned.values()] == [0.01]
    tuned_runs("runs/c", "c", {0.1: math.nan, 0.01: math.inf})
    assert "c: training has diverged with every value of" in refused(tuned=["model.optimizer.lr"])


def test_methods_that_had_less_to_choose_among_are_refused() -> None:
    tuned_runs("runs/a", "a", {0.1: 3.0, 0.01: 1.0, 0.001: 2.0})
    tuned_runs("runs/b", "b", {0.1: 2.5})
    assert refused(tuned=["model.optimizer.lr"]) == (
        "a was chosen among 3 values and b among 1: give each method as many, or --allow tuning"
    )
    assert len(compared(tuned=["model.optimizer.lr"], allowed=["tuning"]).rows) == 2
    assert "no configuration of the 8 runs has it" in refused(tuned=["model.optimizer.lrr"])


# ---------------------------------------------------------------- as texts


@pytest.mark.parametrize(
    ("p", "confidence", "said"),
    [
        (0.0504, 0.95, "0.0504"),
        (0.0496, 0.95, "0.0496"),
        (0.050004, 0.95, "0.050004"),
        (0.05, 0.95, "0.050"),
        (0.0514, 0.95, "0.051"),
        (0.104, 0.9, "0.104"),
        (0.104, 0.95, "0.10"),
        (0.0004, 0.95, "< 0.001"),
        (0.0007, 0.9995, "0.001"),
        (0.0004, 0.9995, "< 0.0005"),
    ],
)
def test_no_p_is_printed_as_the_level_that_is_not_it(p: float, confidence: float, said: str) -> None:
    assert in_words(p, confidence) == said


def test_confidence_is_not_rounded_to_all() -> None:
    for name in ("base", "a", "b"):
        write_method(Path("runs") / name, 70, method=name)
    found = compared(confidence=0.999, baseline="base")
    assert all("99.9% interval" in table.header for table in tables(found)[:2])
    said = sentences(found)
    assert any(line.startswith("99.9% intervals are over") for line in said)
    assert (
        "p is two-sided, corrected for 2 comparisons (Holm), which intervals are not; methods are told apart at 0.001"
    ) in said


def test_the_tables_hold_what_was_found() -> None:
    write_method(Path("runs/full"), 70, method="ftlab.methods.Full")
    write_method(Path("runs/lora_8"), 74)
    found = compared(baseline="full", price=2.0)
    quality, apart, cost = tables(found)
    assert quality.header == ["method", "seeds", "test_rougeL", "95% interval", "over seeds", "over records"]
    assert [row[:3] for row in quality.rows] == [(row.name, "3", f"{row.score.value:.2f}") for row in found.rows]
    assert apart.header[0] == "less full"
    assert [row[0] for row in apart.rows] == ["lora_8"]
    assert cost.header == [
        *("method", "trained", "share", "on disk", "peak memory", "tokens/s", "training"),
        *("to quality", "dollars", "gap"),
    ]
    assert cost.rows[0] == ("full", "250", "25.00%", "2.00 MB", "3.00 GB", "500", "100.0 s", "100.0 s", "1", "+0.300")
    text = latex(found)
    assert r"lora\_8 & 3 & " in text
    assert text.count(r"\begin{tabular}") == text.count(r"\bottomrule") == 3
    assert all(line.count("&") in (0, 5, 7, 9) for line in text.splitlines())


def test_csv_and_json_hold_every_number_in_full() -> None:
    write_method(Path("runs/full"), 70, method="ftlab.methods.Full")
    write_method(Path("runs/lora"), 74)
    found = compared(baseline="full")
    full, line = csv.DictReader(io.StringIO(csv_text(found)))
    assert (full["baseline"], full["p"], full["verdict"]) == ("", "", "")
    versus = found.rows[1].versus
    assert versus is not None
    assert float(line["test_rougeL"]) == found.rows[1].score.value
    assert float(line["difference"]) == versus.difference.value
    assert float(line["p_both"]) == versus.tests.both
    assert float(line["p"]) == versus.p  # which is the one that is printed
    assert line["verdict"] == versus.verdict
    assert float(line["peak_memory"]) == COST["peak_memory_bytes"]
    plain = json.loads(json.dumps(found.plain()))
    assert plain["rows"][1]["versus"]["difference"]["value"] == versus.difference.value
    assert plain["rows"][1]["seeds"] == ["1", "2", "3"]


def test_names_are_escaped_for_markdown_and_latex() -> None:
    write_run(Path("runs/x/a"), [1, 2])
    write_run(Path("runs/x/b"), [1, 2], rate=0.5)
    found = compared("a|b_c 50%=runs/x/a", "runs/x/b")
    assert r"| a\|b_c 50% |" in markdown(found)
    assert r"a|b\_c 50\% &" in latex(found)
