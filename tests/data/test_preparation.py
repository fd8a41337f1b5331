"""From sources to rows: whoever prepares them they are the same, and what was left out is written down."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from character_tokenizers import BOS, EOS, ids
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftlab.data import FinetuneData
from ftlab.data.assignment import Splits
from ftlab.data.cleaning import Cleaning
from ftlab.data.duplicates import Duplicates
from ftlab.data.leaks import Leaks
from ftlab.data.mixing import Source
from ftlab.errors import UserError
from ftlab.networks import Network

Write = Callable[..., str]
Make = Callable[..., FinetuneData]
SENTENCE = "the quick brown fox jumps over the lazy dog and runs far"


@pytest.fixture
def make(network: Network, tmp_path: Path) -> Make:
    """Data over the directory `set`, in which every split has its file."""

    def make_data(**options: Any) -> FinetuneData:
        defaults: dict[str, Any] = {"splits": Splits(0, 0)}
        if "sources" not in options:
            defaults["path"] = str(tmp_path / "set")
        return FinetuneData(network, **(defaults | options))

    return make_data


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _dropped(data: FinetuneData) -> list[dict[str, Any]]:
    return _lines(data.prepared.directory / "dropped.jsonl")


def _texts(data: FinetuneData, split: Any = "train") -> list[str]:
    return [data.encoder.decode(row.input_ids[1:]) for row in data.rows(split)]


class TestDropped:
    def test_every_rule(self, make: Make, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "choosing.py").write_text(
            "def choose(columns):\n    return None if columns.get('prompt') == 'no' else columns\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "choosing", raising=False)
        write(
            "set/train.jsonl",
            [
                {"prompt": "kept", "completion": "b"},
                {"prompt": "no", "completion": "b"},
                {"prompt": "broken", "completion": None},
                {"prompt": "  ", "completion": "b"},
                {"prompt": "silent", "completion": "\t"},
                {"prompt": "x", "completion": "y"},
                {"prompt": "x" * 41, "completion": "y"},
                {"prompt": "kept", "completion": "b"},
                {"prompt": "tested", "completion": "b"},
                {"prompt": "tokens", "completion": "y" * 34},
                {"prompt": SENTENCE[:30], "completion": SENTENCE[30:40]},
            ],
        )
        write("set/test.jsonl", [{"prompt": "tested", "completion": "b"}, {"prompt": "short", "completion": ""}])
        data = make(
            function="choosing.choose",
            clean=Cleaning(malformed="drop", min_characters=3, max_characters=40),
            leaks=Leaks("drop"),
            max_length=40,
            overflow="drop",
        )
        found = [(each["rule"].split(":")[0], each["source"], each["text"]) for each in _dropped(data)]
        assert found == [
            ("function", "train.jsonl:2", '{"prompt": "no", "completion": "b"}'),
            ("malformed", "train.jsonl:3", '{"prompt": "broken", "completion": null}'),
            ("empty_prompt", "train.jsonl:4", '{"prompt": "  ", "completion": "b"}'),
            ("empty_answer", "train.jsonl:5", '{"prompt": "silent", "completion": "\\t"}'),
            ("too_few_characters", "train.jsonl:6", '{"prompt": "x", "completion": "y"}'),
            ("too_many_characters", "train.jsonl:7", json.dumps({"prompt": "x" * 41, "completion": "y"})),
            ("too_long", "train.jsonl:10", "tokens ⇒ " + "y" * 34),
            ("too_long", "train.jsonl:11", f"{SENTENCE[:30]} ⇒ {SENTENCE[30:40]}"),
            ("exact_duplicate", "train.jsonl:8", "kept ⇒ b"),
            ("empty_answer", "test.jsonl:2", '{"prompt": "short", "completion": ""}'),
            ("leak", "train.jsonl:9", "tested ⇒ b"),
        ]
        malformed = next(each["rule"] for each in _dropped(data) if each["source"] == "train.jsonl:3")
        assert malformed.startswith("malformed: train.jsonl:3: column completion is null")
        assert [each["repeats"] for each in _dropped(data) if "repeats" in each] == ["train.jsonl:1", "test.jsonl:1"]
        assert data.prepared.report["dropped"] == dict(Counter(rule for rule, _, _ in found))
        assert (data.prepared.report["read"], data.prepared.report["kept"]) == (13, 2)
        assert _texts(data) == ["keptb"]

    def test_text_is_cut(self, make: Make, write: Write) -> None:
        write("set/train.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "p" * 9999, "completion": " "}])
        (dropped,) = _dropped(make())
        assert dropped["text"] == '{"prompt": "' + "p" * 188

    def test_near_duplicates_across_sources(self, make: Make, write: Write) -> None:
        first = write("one.jsonl", [{"prompt": SENTENCE, "completion": "b"}])
        second = write(
            "two.jsonl", [{"prompt": SENTENCE + "!", "completion": "b"}, {"prompt": SENTENCE[::-1], "completion": "b"}]
        )
        options = {"sources": [Source(first), Source(second)], "max_length": 63, "overflow": "truncate"}
        data = make(duplicates=Duplicates(near=0.8), **options)
        assert [(each["rule"], each["source"], each["repeats"]) for each in _dropped(data)] == [
            ("near_duplicate", "two.jsonl:1", "one.jsonl:1")
        ]
        assert len(make(**options).rows("train")) == 3

    ROWS = st.lists(
        st.fixed_dictionaries(
            {
                "prompt": st.sampled_from(["", " ", "a", "b", "c", "é", "\ud800", SENTENCE, None, 3, float("nan")]),
                "completion": st.sampled_from(["", "x", "y", "\u200b", "z" * 70, ["x", "y"], ["x", ""], [], None]),
            }
        ),
        min_size=1,
        max_size=12,
    )

    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(rows=ROWS, judging=ROWS, action=st.sampled_from(["drop", "ignore"]), learned=st.booleans())
    def test_no_record_is_lost_and_none_comes_twice(
        self, make: Make, write: Write, rows: list[dict], judging: list[dict], action: Any, learned: bool
    ) -> None:
        """Whatever the records: each is in one split, or is in dropped.jsonl once with its rule, and sums agree."""
        good = {"prompt": "good", "completion": "x"}
        write("set/train.jsonl", [good, *rows])
        write("set/test.jsonl", [good | {"prompt": "judge"}, *judging])
        data = make(
            clean=Cleaning(malformed="drop"), overflow="drop", leaks=Leaks(action), learn="all" if learned else "last"
        )
        report, dropped = data.prepared.report, _dropped(data)
        sources = [f"train.jsonl:{n + 1}" for n in range(len(rows) + 1)]
        sources += [f"test.jsonl:{n + 1}" for n in range(len(judging) + 1)]
        left_out = [each["source"] for each in dropped]
        assert len(set(left_out)) == len(left_out)
        assert set(left_out) <= set(sources)
        assert report["read"] == len(sources) == report["kept"] + len(dropped)
        assert report["dropped"] == dict(Counter(each["rule"].split(":")[0] for each in dropped))
        numbers = {split: set(data.prepared.rows(split).records.tolist()) for split in ("train", "test")}
        assert not numbers["train"] & numbers["test"]
        assert len(numbers["train"] | numbers["test"]) == report["kept"]
        tested = [record.source for _, record in data.prepared.records("test")]
        assert tested == [source for source in sources if source.startswith("test") and source not in left_out]


class TestLeaks:
    @pytest.fixture(autouse=True)
    def files(self, write: Write) -> None:
        """Two of three test records train; one under another case."""
        rows = [{"prompt": f"a{n}", "completion": "b"} for n in range(5)]
        write("set/train.jsonl", rows)
        write("set/test.jsonl", [rows[1], {"prompt": "A3", "completion": "B"}, {"prompt": "new", "completion": "b"}])

    def test_a_refusal_names_offenders_and_lists_them(self, make: Make, tmp_path: Path) -> None:
        with pytest.raises(UserError) as refused:
            make(cache=str(tmp_path / "cache")).rows("train")
        (path,) = (tmp_path / "cache" / "prepared").glob("*.leaks.jsonl")
        assert str(refused.value).startswith(
            "2 of the 3 test records are also found in training: test.jsonl:1 in train.jsonl:2 (record), "
            f"test.jsonl:2 in train.jsonl:4 (normalised); all are listed in {path}; set data.leaks.action to drop"
        )
        assert [(each["evaluation"], each["training"], each["kind"]) for each in _lines(path)] == [
            ("test.jsonl:1", "train.jsonl:2", "record"),
            ("test.jsonl:2", "train.jsonl:4", "normalised"),
        ]
        assert not [place for place in (tmp_path / "cache" / "prepared").iterdir() if place.is_dir()]

    def test_drop_leaves_training_records_out(self, make: Make) -> None:
        data = make(leaks=Leaks("drop"))
        assert _texts(data) == ["a0b", "a2b", "a4b"]
        assert _texts(data, "test") == ["a1b", "A3B", "newb"]
        assert _dropped(data) == [
            {"rule": "leak", "source": "train.jsonl:2", "text": "a1 ⇒ b", "repeats": "test.jsonl:1"},
            {"rule": "leak", "source": "train.jsonl:4", "text": "a3 ⇒ b", "repeats": "test.jsonl:2"},
        ]
        report = data.prepared.report
        assert (report["dropped"], report["kept"]) == ({"leak": 2}, 6)
        assert report["leaks"]["evaluated"] == {"test": 3}
        assert report["leaks"]["counts"] == {"record": 1, "prompt": 0, "normalised": 1, "ngram": 0}
        assert len(_lines(data.prepared.directory / "leaks.jsonl")) == 2

    def test_ignore_does_not_look(self, make: Make) -> None:
        data = make(leaks=Leaks("ignore"))
        assert len(data.rows("train")) == 5
        assert data.prepared.report["leaks"] is None

    def test_a_share_may_be_accepted(self, make: Make) -> None:
        data = make(leaks=Leaks(allowed=0.67))
        assert len(data.rows("train")) == 5
        assert data.prepared.report["leaks"]["counts"]["record"] == 1

    def test_a_benchmark_with_columns_of_its_own(self, make: Make, write: Write) -> None:
        train = write("train.jsonl", [{"ask": f"What is {n}?", "say": f"{n}"} for n in range(9)])
        bench = write("bench.jsonl", [{"instruction": "What is 3?", "output": "three"}])
        options = {"path": train, "prompt": "{ask}", "response": "{say}", "splits": Splits(validation=0, test=0)}
        data = make(**options, leaks=Leaks("drop", against=(bench,)))
        assert data.prepared.report["dropped"] == {"leak": 1}

    def test_a_benchmark_of_text_is_read_by_line(self, make: Make, tmp_path: Path) -> None:
        (tmp_path / "bench.txt").write_text("a0b\nnothing of the kind\n")
        texts = tmp_path / "texts"
        texts.mkdir()
        (texts / "train.jsonl").write_text("".join(f'{{"text": "a{n}b"}}\n' for n in range(4)))
        options = {"path": str(texts), "splits": Splits(validation=0, test=0)}
        data = make(**options, leaks=Leaks("drop", against=(str(tmp_path / "bench.txt"),)))
        assert data.prepared.report["dropped"] == {"leak": 1}

    def test_training_alone_against_a_benchmark(self, make: Make, write: Write, tmp_path: Path) -> None:
        (tmp_path / "set" / "test.jsonl").unlink()
        path = write("bench.jsonl", [{"prompt": "a4"}, {"prompt": "other"}])
        with pytest.raises(
            UserError, match=r"1 of the 2 benchmark records .* bench\.jsonl:1 in train\.jsonl:5 \(prompt\)"
        ):
            make(leaks=Leaks(against=(path,))).rows("train")
        data = make(leaks=Leaks("drop", against=(path,)))
        assert _texts(data) == ["a0b", "a1b", "a2b", "a3b"]
        assert [(each["source"], each["repeats"]) for each in _dropped(data)] == [("train.jsonl:5", "bench.jsonl:1")]

    def test_what_is_carved_out_of_one_file(self, make: Make, write: Write) -> None:
        """The same prompt is never parted; the same but for its case is, and found."""
        rows = [{"prompt": f"{word}{n}", "completion": "x"} for n in range(40) for word in ("word", "WORD")]
        path = write("pool.jsonl", rows)
        data = make(path=path, splits=Splits(0.2, 0.2), leaks=Leaks("drop"))
        judged = {text.lower() for split in ("validation", "test") for text in _texts(data, split)}
        assert judged
        assert judged.isdisjoint(text.lower() for text in _texts(data))
        assert data.prepared.report["kept"] + data.prepared.report["dropped"]["leak"] == 80


class TestWorkers:
    def test_the_same_bytes(self, make: Make, write: Write, tmp_path: Path) -> None:
        rows = [{"prompt": f"p{n * n % 701}", "completion": "x" * (n % 60), "topic": f"{n % 3}"} for n in range(3500)]
        path = write("pool.jsonl", rows)
        contents = []
        for workers in (1, 2, 3):
            data = make(
                path=path,
                preparation_workers=workers,
                cache=str(tmp_path / str(workers)),
                overflow="drop",
                splits=Splits(20, 0.1),
                stratify_by="topic",
                duplicates=Duplicates(near=0.9, shingle=2, permutations=16),
            )
            contents.append({file.name: file.read_bytes() for file in data.prepared.directory.iterdir()})
        assert set(contents[0]) == {
            "rows.arrow", "names.arrow", "index.npz", "records.jsonl", "dropped.jsonl", "leaks.jsonl", "report.json",
            "sealed.json",
        }  # fmt: skip
        assert contents[0] == contents[1] == contents[2]

    def test_a_worker_that_is_killed(
        self, make: Make, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "killing.py").write_text(
            f"import os\n\ndef kill(columns):\n    if columns['prompt'] == 'p7' and os.getpid() != {os.getpid()}:\n"
            "        os.kill(os.getpid(), 9)\n    return columns\n"
        )
        monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "killing", raising=False)
        write("set/train.jsonl", [{"prompt": f"p{n}", "completion": "x"} for n in range(2500)])
        with pytest.raises(
            UserError, match=r"a process that prepared data was killed, .* set data\.preparation_workers to fewer"
        ):
            make(function="killing.kill", preparation_workers=2).rows("train")
        assert os.environ.get("TOKENIZERS_PARALLELISM") != "false"
        assert len(make(function="killing.kill", preparation_workers=1).rows("train")) == 2500

    def test_the_first_refusal_whoever_finds_it(self, make: Make, write: Write) -> None:
        rows: list[dict[str, Any]] = [{"prompt": f"p{n}", "completion": "x"} for n in range(5000)]
        rows[1500]["completion"] = rows[3500]["completion"] = None
        write("set/train.jsonl", rows)
        for workers in (1, 2):
            with pytest.raises(UserError, match=r"train\.jsonl:1501: column completion is null"):
                make(preparation_workers=workers).rows("train")


PEAK = """
import json, resource, sys
from ftlab.data import FinetuneData
from ftlab.data.assignment import Splits
from ftlab.networks import Network

network, path, cache, workers = sys.argv[1:]
data = FinetuneData(Network(network), path, cache=cache, splits=Splits(0.05, 0.05), preparation_workers=int(workers))
_ = data.prepared
with open("/proc/self/status") as status:  # getrusage would count what the test itself held before
    own = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_memory_does_not_grow_with_rows(network: Network, tmp_path: Path, workers: int) -> None:
    peaks = []
    for size in (2_000, 20_000):
        path = tmp_path / f"{size}.jsonl"
        with path.open("w") as file:
            for n in range(size):
                row = {"prompt": f"p{n}", "completion": f"{n} {SENTENCE[:40]}", "notes": "x" * 10_000}
                file.write(json.dumps(row) + "\n")  # 200 MB, if all were held
        command = [sys.executable, "-c", PEAK, network.path, str(path), str(tmp_path / "cache"), str(workers)]
        peaks.append(int(subprocess.run(command, capture_output=True, check=True, text=True).stdout))
    assert peaks[1] <= 1.2 * peaks[0]


def test_rows_by_hand_through_workers(make: Make, write: Write) -> None:
    write("set/train.jsonl", [{"prompt": f"p{n}", "completion": "x"} for n in range(2100)])
    rows = make(preparation_workers=2).rows("train")
    assert [list(row.input_ids) for row in rows] == [[BOS, *ids(f"p{n}x"), EOS] for n in range(2100)]
