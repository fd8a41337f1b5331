"""scripts/bench_*.py: goals judged by figures made by hand, and the page of a bench that was run."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binom


@pytest.fixture
def targets(scripts: Path) -> Any:
    return importlib.import_module("bench_targets")


@pytest.fixture
def benching(scripts: Path) -> Any:
    return importlib.import_module("benching")


# ---------------------------------------------------------------- what turns can tell


def test_fewer_than_five_turns_cannot_tell(benching: Any) -> None:
    assert benching.interval([1.0, 2.0, 3.0, 4.0]) is None
    assert benching.interval([5.0, 1.0, 2.0, 4.0, 3.0]) == (1.0, 5.0)


@pytest.mark.parametrize("count", [5, 6, 10, 15, 40])
def test_an_interval_is_the_narrowest_that_is_sure_enough(benching: Any, count: int) -> None:
    """The k-th smallest and the k-th largest hold the median unless fewer than k draws fall on one side of it."""
    low, high = benching.interval([float(number) for number in range(1, count + 1)])
    k = int(low)
    assert high == count + 1 - k
    assert 1 - 2 * binom.cdf(k - 1, count, 0.5) >= 0.93
    assert 1 - 2 * binom.cdf(k, count, 0.5) < 0.93


@pytest.mark.parametrize(
    ("values", "most", "verdict"),
    [
        ((0.9, 0.8, 0.95, 0.7, 0.85), True, "met"),
        ((1.9, 1.8, 1.95, 1.7, 1.85), True, "**missed**"),
        ((1.9, 1.8, 1.95, 1.7, 1.85), False, "met"),
        ((0.9, 0.8, 1.1, 0.7, 0.85), True, "met by the median, which these turns do not tell"),
        ((1.2, 0.8, 1.1, 1.3, 1.4), True, "**missed** by the median, which these turns do not tell"),
        ((0.1,), True, "met by the median, which these turns do not tell"),
        ((), True, "not measured: no data"),
    ],
)
def test_a_goal_is_judged_by_the_median_and_told_by_the_interval(
    targets: Any, values: tuple[float, ...], most: bool, verdict: str
) -> None:
    assert targets.Target("of what", "part", 1.0, most, values, lacking="no data").verdict == verdict


def test_one_value_is_enough_where_another_turn_gives_the_same(targets: Any) -> None:
    exact = targets.Target("padding", "data", 0.02, True, (0.0213,), "%", exact=True)
    assert (exact.verdict, exact.measured, exact.bound) == ("**missed**", "2.1%", "<= 2.0%")


# ---------------------------------------------------------------- which figures a goal is of


def arm(ms: list[float], targets: float = 100.0) -> dict[str, Any]:
    """An arm that learns so many targets a step."""
    rates = [targets / number * 1e3 for number in ms]
    turns = {"ms": ms, "CPU ms": ms, "tokens/s": [8 * rate for rate in rates], "targets/s": rates}
    turns |= {"memory": [9e8] * len(ms), "first_step": [7.0] * len(ms)}
    spreads = {name: (sorted(values)[len(values) // 2], min(values), max(values)) for name, values in turns.items()}
    return spreads | {"padding": 0.1, "turns": turns}


def training(work: dict[str, Any] | None = None, **arms: dict[str, Any]) -> dict[str, Any]:
    said = {"data": "train.jsonl", "steps": 4, "warm": 1, "length": 64, "packs": 1, "precision": "32-true"}
    said |= {"vocabulary": 1024, "skewed": False} | (work or {})
    return {
        "kind": "training",
        "says": "a network",
        **{"command": "the command", "date": "2026-01-01", "commit": "abc", "seconds": 60},
        "figures": {"work": said, "repeats": 5, **arms},
    }


SLOW, SMALL = [200.0, 210.0, 190.0, 300.0, 205.0], [20.0, 21.0, 19.0, 30.0, 20.5]


def by_name(found: list[Any]) -> dict[str, Any]:
    return {target.name: target for target in found}


def test_overhead_is_a_share_of_long_steps_and_milliseconds_of_short_ones(targets: Any) -> None:
    slow = training(bare=arm(SLOW), ftlab=arm([1.02 * ms for ms in SLOW]))
    small = training(bare=arm(SMALL), ftlab=arm([ms + 1.5 for ms in SMALL]))
    found = by_name(targets.judged({"demo": slow, "tiny": small}))
    long, short = (found[f"time over a bare loop, {ms} ms a step"] for ms in (205, 20))
    assert (long.part, long.bound, long.verdict) == ("demo", "<= 3.0%", "met")
    assert long.values == pytest.approx([0.02] * 5)
    assert (short.part, short.bound, short.verdict) == ("tiny", "<= 1.00 ms", "**missed**")
    assert short.values == pytest.approx([1.5] * 5)


def test_peers_are_held_against_within_turns(targets: Any) -> None:
    peers = {"hf": arm([1.1 * ms for ms in SLOW]), "trl": arm([0.9 * ms for ms in SLOW])}
    found = by_name(targets.judged({"demo": training(ftlab=arm(SLOW), **peers)}))
    hf, trl = (found[f"tokens/s over {peer}, same padded batches"] for peer in ("HF Trainer and PEFT", "TRL"))
    assert hf.values == pytest.approx([1.1] * 5)
    assert hf.verdict == "met"
    assert trl.values == pytest.approx([0.9] * 5)
    assert trl.verdict == "**missed**"


def test_peers_at_their_defaults_are_held_against_the_best_of_ftlab(targets: Any) -> None:
    arms = {"hf": arm(SLOW), "trl:default": arm([2 * ms for ms in SLOW]), "trl:pack": arm(SLOW, targets=150.0)}
    arms |= {"ftlab:bucket": arm(SLOW, targets=180.0), "ftlab:pack": arm(SLOW, targets=210.0)}
    skewed = {"vocabulary": 50_257, "skewed": True}
    found = by_name(targets.judged({"words": training(skewed, **arms)}))
    hf, trl = (
        found[f"target tokens/s over {peer} at its defaults (ftlab:pack)"] for peer in ("HF Trainer and PEFT", "TRL")
    )
    assert hf.values == pytest.approx([2.1] * 5)
    assert trl.values == pytest.approx([4.2] * 5)
    assert found["target tokens/s over TRL packed (ftlab:pack)"].values == pytest.approx([1.4] * 5)
    for work in ({"vocabulary": 1024, "skewed": True}, {"vocabulary": 50_257, "skewed": False}):
        found = by_name(targets.judged({"words": training(work, **arms)}))
        lacking = found["target tokens/s over peers at their defaults"]
        assert lacking.met is None
        assert "BENCH_DATA" in lacking.verdict


def test_what_does_not_count_is_not_judged(targets: Any) -> None:
    refused = {"refused": "the first gradient's norm is 0.0"}
    arms = {"bare": arm(SLOW), "hf": refused, "ftlab": arm(SLOW), "trl:pack": arm(SLOW), "ftlab:pack": refused}
    found = by_name(targets.judged({"demo": training(**arms)}))
    hf = found["tokens/s over HF Trainer and PEFT, same padded batches"]
    assert hf.verdict == "not measured: hf does not count: the first gradient's norm is 0.0"
    assert found["target tokens/s over TRL packed (ftlab)"].met
    found = by_name(targets.judged({"demo": training(**arms | {"ftlab": refused})}))
    assert found["target tokens/s over TRL packed (None)"].verdict == "not measured: no arm of ftlab counts"


OTHER: dict[str, dict[str, Any]] = {
    "packing": {
        **{"records": 64, "packs": 19, "replaced": 400, "seen": 0.0},
        "as they come": {"loss": 0.0, "gradient": 2e-7},
        "turned round": {"loss": 3e-7, "gradient": 2e-5},
        "as they come, float64": {"loss": 1e-16, "gradient": 1e-15},
        "turned round, float64": {"loss": 1e-16, "gradient": 1e-15},
        "float32 beside float64, padded": {"loss": 1e-7, "gradient": 3e-5},
    },
    "checkpoints": {"bytes": 1_035, "tensors": 1_000},
    "head": {
        "2048 32000 512 frozen ftlab": {
            "ms": (9, 9, 9),
            "time": (1, 1, 1),
            "MB": (3, 3, 3),
            "memory": (0.27, 0.27, 0.27),
        },
        "2048 32000 512 trained ftlab": {
            "ms": (9, 9, 9),
            "time": (1, 1, 1),
            "MB": (5, 5, 5),
            "memory": (0.5, 0.5, 0.5),
        },
    },
    "data": {
        "t0_mix/train.jsonl": {
            **{
                "rows": 10,
                "seconds": {"ftlab": (1.0, 1.0, 1.0)},
                "ratios": {"ftlab over TRL, rows/s": (1.8, 1.8, 1.8)},
            },
            "waste": {"packs of 1024": 0.001, "packs of 2048": 0.03, "batches of 8, bucket": 0.02},
            "turns": {
                "ftlab over TRL, rows/s": [1.8],
                "two workers over one, tenfold rows/s": [1.6],
                "second_start": [0.3],
                "peak memory, tenfold over once": [1.0],
            },
        }
    },
    "start": {"ftlab": {"turns": [8.0] * 5, "wall": (8.0, 8.0, 8.0), "cpu": (7.0, 7.0, 7.0), "MB": (900, 900, 900)}},
}


def parts() -> dict[str, Any]:
    said = {"command": "the command --only others", "date": "2026-01-02", "commit": "abc", "seconds": 30}
    return {kind: {"kind": kind, **said, "figures": figures} for kind, figures in OTHER.items()}


def test_the_other_parts_have_goals_of_their_own(targets: Any) -> None:
    met = {target.name: target.met for target in targets.judged(parts())}
    assert met == {
        "target tokens/s over peers at their defaults": None,
        "preparation of t0_mix/train.jsonl: rows/s over TRL": True,
        "preparation of t0_mix/train.jsonl: rows/s by two workers over one, tenfold": False,
        "preparation of t0_mix/train.jsonl: a second start": True,
        "preparation of t0_mix/train.jsonl: memory at ten times the rows over once": True,
        "padding of t0_mix/train.jsonl: packs of 1024": True,
        "padding of t0_mix/train.jsonl: packs of 2048": False,
        "padding of t0_mix/train.jsonl: batches of 8, bucket": True,
        "loss of packs beside padded batches, fp32": True,
        "gradient of packs beside padded batches, fp32": False,
        "change of a packed sample's logits when the others change": True,
        "extra memory of the head over all logits, 32,000 words, 2048 rows, frozen matrix": True,
        "extra memory of the head over all logits, 32,000 words, 2048 rows, trained matrix": False,
        "ftlab fit on the demo to its first step's end": True,
        "checkpoint of an adapter over its tensors' bytes": True,
    }


# ---------------------------------------------------------------- the page, and the whole


def test_the_page_has_each_part_with_what_does_not_count_and_the_profile(scripts: Path) -> None:
    page = importlib.import_module("bench_page").page
    trained = training(bare=arm(SLOW), ftlab=arm(SLOW), hf={"refused": "no memory"})
    trained["figures"]["profile"] = ["ftlab", "a step of 4 profiled: 9 ms"]
    machine = {
        "processor": "P",
        "cores": 2,
        "threads": "2",
        "system": "S",
        "python": "3.11",
        "versions": {"torch": "2"},
    }
    record = {"form": "short", "machine": machine, "parts": {"demo": trained} | parts()}
    text = page(json.loads(json.dumps(record)))
    assert text.startswith("# The bench, short form\n\n    the command\n    the command --only others\n\nP, 2 cores")
    assert "Of 2026-01-01 and 2026-01-02, commit abc; 4 minutes." in text
    assert "| hf | does not count: no memory |" in text
    assert "    a step of 4 profiled: 9 ms" in text
    for name in ("demo", *OTHER):
        assert f"\n## {name}\n" in text


def test_an_unknown_part_is_refused(scripts: Path) -> None:
    command = [sys.executable, str(scripts / "benchmark.py"), "suite", "short", "--only", "deta"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "['deta']: the short form has ['demo', 'tiny', 'words'" in done.stderr


def test_tokenizer_and_network_are_found_beside_the_data(scripts: Path, tmp_path: Path) -> None:
    suite = importlib.import_module("bench_suite")
    beside = tmp_path / "tokenizers" / "gpt2"
    for directory in (tmp_path / "data", beside, tmp_path / "mine"):
        directory.mkdir(parents=True)
    said = {"data": tmp_path / "data", "tokenizer": None, "network": None}
    found = suite.world(argparse.Namespace(**said), tmp_path)
    assert (found.tokenizer, found.network) == (beside, None)
    said |= {"tokenizer": tmp_path / "mine", "network": tmp_path / "mine"}
    found = suite.world(argparse.Namespace(**said), tmp_path)
    assert (found.tokenizer, found.network) == (tmp_path / "mine", tmp_path / "mine")
    assert suite.world(argparse.Namespace(data=None, tokenizer=None, network=None), tmp_path).tokenizer is None


def test_parts_of_another_machine_are_not_added_to(scripts: Path, tmp_path: Path) -> None:
    """What is measured here must not be read as if it came from there."""
    (tmp_path / "bench_short.json").write_text(json.dumps({"machine": {"cores": 999}, "parts": {}}))
    suite = [sys.executable, str(scripts / "benchmark.py"), "suite", "short", "--only", "packing"]
    done = subprocess.run([*suite, "--output", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "bench_short.json is of another machine" in done.stderr


@pytest.mark.slow
def test_the_suite_leaves_figures_and_a_page(scripts: Path, tmp_path: Path) -> None:
    suite = [sys.executable, str(scripts / "benchmark.py"), "suite", "short", "--turns", "1", "--output", str(tmp_path)]
    for part in ("tiny", "packing"):
        done = subprocess.run([*suite, "--only", part], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "bench_short.json").read_text())
    assert list(record["parts"]) == ["tiny", "packing"]
    assert record["parts"]["tiny"]["figures"]["ftlab"]["ms"][0] > 0
    assert str(tmp_path) not in (tmp_path / "bench_short.json").read_text()
    page = (tmp_path / "bench_short.md").read_text()
    assert page in done.stdout
    assert "time over a bare loop" in page
