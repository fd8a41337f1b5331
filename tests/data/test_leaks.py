"""Leaks: hand-made ones of every kind, and n-grams against sets of word tuples."""

import pickle
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftlab.data import leak_tables
from ftlab.data.leaks import Leak, LeakIndex, LeakReport, Leaks
from ftlab.data.records import Message, Record, pair
from ftlab.errors import UserError

LONG = "the quick brown fox jumps over the lazy dog while nobody at all is looking at it"  # 17 words, five 13-grams


def _report(leaks: Leaks, training: Sequence[Record], chunk: int = 1000, **evaluation: Sequence[Record]) -> LeakReport:
    index = LeakIndex(leaks)
    for split, records in evaluation.items():
        for start in range(0, len(records), chunk):
            part = records[start : start + chunk]
            index.add_evaluation(split, leaks.fingerprints(part), [record.source for record in part])
    for start in range(0, len(training), chunk):
        part = training[start : start + chunk]
        index.match_training(leaks.fingerprints(part), [record.source for record in part])
    return index.report()


def _pairs(name: str, *texts: tuple[str, ...]) -> list[Record]:
    return [pair(prompt, tuple(answers), f"{name}:{line}") for line, (prompt, *answers) in enumerate(texts, start=1)]


def _text(text: str, source: str) -> Record:
    return Record((), (Message("text", text),), source)


@pytest.mark.parametrize(
    ("training", "evaluation", "kind"),
    [
        (("ask", "say"), ("ask", "say"), "record"),
        (("ask", "one", "say"), ("ask", "two", "say"), "record"),
        (("ask", "say"), ("ask", "other"), "prompt"),
        (("ask", "say"), ("ask",), "prompt"),
        (("Ask  me", "say"), ("ask me\n", "other"), "normalised"),
        (("3 - 4?", "-1"), ("3 + 4?", "7"), None),
        (("Ask me!", "Say"), ("ask me", "say."), "normalised"),
        (("Ask me!", "Say"), ("ask me", "other"), None),
        ((f"{LONG} now", "say"), (f"{LONG} then", "other"), "ngram"),  # five of six n-grams
        (("ask", f"{LONG} now"), ("wonder", f"{LONG} then"), "ngram"),
        ((LONG.upper().replace(" ", ", "), "say"), (f"{LONG} then", "say"), "ngram"),
        (("say", LONG), (LONG, "say"), "ngram"),
        ((f"{LONG} now", "say"), (f"{LONG} three more words here", "other"), None),  # five of nine
        (("one two three four five", "x"), ("one two three four six", "y"), None),
        (("ask", "say"), ("wonder", "say"), None),
    ],
)
def test_each_kind(training: tuple[str, ...], evaluation: tuple[str, ...], kind: str | None) -> None:
    report = _report(Leaks(), _pairs("train", ("x", "y"), training), test=_pairs("test", ("z", "y"), evaluation))
    assert report.counts == {name: int(name == kind) for name in ("record", "prompt", "normalised", "ngram")}
    assert report.training_to_drop.tolist() == ([1] if kind else [])
    assert report.evaluated == {"test": 2}
    if kind:
        share = 1 if kind != "ngram" else report.listed[0].share
        assert report.listed == [Leak("test", kind, "test:2", "train:2", share)]


def test_running_text_and_tokens_leak_by_their_content() -> None:
    def tokens(values: Sequence[int], source: str) -> Record:
        return Record((), (), source, tokens=tuple(values))

    training = [_text("Once.", "a:1"), _text(LONG, "a:2"), tokens([1, 2], "a:3"), tokens(range(100, 120), "a:4")]
    evaluation = [
        _text("once", "b:1"),
        _text(f"{LONG} now", "b:2"),
        tokens([1, 2], "b:3"),
        tokens(range(101, 120), "b:4"),
        tokens([12], "b:5"),
        pair("Once.", ("upon",), "b:6"),  # a prompt is no running text
    ]
    listed = _report(Leaks(), training, validation=evaluation).listed
    assert [(leak.kind, leak.evaluation, leak.training) for leak in listed] == [
        ("record", "b:3", "a:3"),
        ("normalised", "b:1", "a:1"),
        ("ngram", "b:2", "a:2"),
        ("ngram", "b:4", "a:4"),
    ]


def test_conversations_are_compared_with_their_roles() -> None:
    def chat(*roles: str) -> Record:
        return Record(tuple(Message(role, "hello") for role in roles), (Message("assistant", "yes"),), "a:1")

    assert _report(Leaks(), [chat("system", "user")], test=[chat("system", "user")]).counts["record"] == 1
    assert sum(_report(Leaks(), [chat("system", "user")], test=[chat("user", "user")]).counts.values()) == 0


def test_a_prompt_that_all_share_says_nothing() -> None:
    """An instruction without input: only who also has the same answer has leaked."""
    training = _pairs("train", *(("Tell a joke.", f"joke {place}") for place in range(20)))
    evaluation = _pairs("test", *(("Tell a joke.", f"joke {place}") for place in range(18, 38)))
    report = _report(Leaks(), training, test=evaluation)
    assert report.counts == {"record": 2, "prompt": 0, "normalised": 0, "ngram": 0}
    assert report.training_to_drop.tolist() == [18, 19]
    few = _report(Leaks(), training, test=[*evaluation, *_pairs("more", *((f"p{n}", "a") for n in range(20)))])
    assert few.counts == {"record": 2, "prompt": 18, "normalised": 0, "ngram": 0}  # no more than half of them
    assert _report(Leaks(prompts=False), training, test=evaluation[:5]).counts["prompt"] == 0


def test_templates_do_not_count() -> None:
    """Eleven training records with the same long instruction: it is no evidence, but the question after it is."""
    template = f"{LONG} and now answer this question"
    training = _pairs("train", *((f"{template}: number {place}", "yes") for place in range(11)))
    training[4] = pair(f"{template}: how many legs has a spider on a rainy day in May", ("eight",), "train:5")
    evaluation = _pairs(
        "test", (f"{template}: whatever", "no"), (f"{template}: how many legs has a spider on a rainy day", "8")
    )
    assert _report(Leaks(common=11), training, test=evaluation).counts["ngram"] == 2
    report = _report(Leaks(), training, test=evaluation)
    assert [(leak.evaluation, leak.training) for leak in report.listed] == [("test:2", "train:5")]
    assert report.training_to_drop.tolist() == [4]


WORDS = st.lists(st.sampled_from("abc"), max_size=8).map(" ".join)
RECORDS = st.lists(st.tuples(WORDS, WORDS), max_size=8)


def _grams(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[place : place + 3]) for place in range(len(words) - 2)}


def _reference(
    training: list[tuple[str, str]], evaluation: list[tuple[str, str]], overlap: float, common: int
) -> list[dict[int, float]]:
    """For each evaluation record the training records it has leaked into, and the share of n-grams they have."""
    counts = Counter(gram for prompt, answer in training for gram in _grams(prompt) | _grams(answer))
    rare = {gram for gram in counts if counts[gram] <= common}
    found: list[dict[int, float]] = []
    for prompt, answer in evaluation:
        # of a gram in both prompt and answer each counts
        asked, answered = ({gram for gram in _grams(text) if counts[gram] <= common} for text in (prompt, answer))
        found.append({})
        for place, texts in enumerate(training):
            theirs = set.union(*map(_grams, texts)) & rare
            shares = [
                len(asked & theirs) / max(len(asked), 1),
                (len(asked & theirs) + len(answered & theirs)) / max(len(asked) + len(answered), 1),
            ]
            if max(shares) >= overlap:
                found[-1][place] = max(shares)
    return found


@given(RECORDS, RECORDS, st.sampled_from([0.3, 0.5, 0.7, 1.0]), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=70)
def test_ngrams_against_sets_of_words(
    training: list[tuple[str, str]],
    evaluation: list[tuple[str, str]],
    overlap: float,
    common: int,
    chunk: int,
    block: int,
) -> None:
    leaks = Leaks(ngram=3, overlap=overlap, common=common, prompts=False)
    # an answer more on one side, so that no record is the same
    asked = [pair(prompt, (answer, "x"), f"e:{n}") for n, (prompt, answer) in enumerate(evaluation)]
    trained = [pair(prompt, (answer, "y"), f"t:{n}") for n, (prompt, answer) in enumerate(training)]
    same = {(prompt, answer) for prompt, answer in training}
    expected = _reference(training, evaluation, overlap, common)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leak_tables, "_BLOCK", block)
        report = _report(leaks, trained, chunk, validation=asked)
    found = {leak.evaluation: leak for leak in report.listed}
    for number, (record, pairs) in enumerate(zip(evaluation, expected, strict=True)):
        leak = found.get(f"e:{number}")
        if record in same:
            assert leak is not None
            assert leak.kind == "record"
        elif pairs:
            best = max(pairs, key=lambda place: (pairs[place], -place))
            assert leak == Leak("validation", "ngram", f"e:{number}", f"t:{best}", round(pairs[best], 3))
        else:
            assert leak is None
    behind = {place for pairs in expected for place in pairs}
    behind |= {place for place, record in enumerate(training) if record in set(evaluation)}
    assert report.training_to_drop.tolist() == sorted(behind)


def test_dropping_leaves_nothing_to_refuse() -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdefghij", k=40)) for _ in range(100)]
    training = _pairs("train", *((text, "x") for text in texts))
    evaluation = _pairs("test", *((text if n % 2 else f"{text} more", "y") for n, text in enumerate(texts[:10])))
    leaks = Leaks(allowed_ngram=0)
    report = _report(leaks, training, test=evaluation)
    assert report.counts == {"record": 0, "prompt": 5, "normalised": 0, "ngram": 5}
    kept = [record for n, record in enumerate(training) if n not in report.training_to_drop]
    assert len(kept) == 90
    assert _report(leaks, kept, test=evaluation).refusal("leaks.jsonl") is None


def test_refusals_name_records_the_list_and_the_way_out() -> None:
    training = _pairs("train", ("a", "b"), (LONG, "c"))
    evaluation = [
        *_pairs("test", ("a", "b"), (f"{LONG} now", "d")),
        *_pairs("more", *((f"p{n}", "x") for n in range(8))),
    ]
    error = _report(Leaks(), training, validation=_pairs("dev", ("q", "r")), test=evaluation).refusal("out/leaks.jsonl")
    assert isinstance(error, UserError)
    assert str(error) == (
        "1 of the 10 test records are also found in training: test:1 in train:1 (record); all are listed in "
        "out/leaks.jsonl; set data.leaks.action to drop to leave the training records out, or data.leaks.allowed to "
        "the share you accept (here 0.1)"
    )
    grams = _report(Leaks(allowed=0.1), training, test=evaluation).refusal("leaks.jsonl")
    assert "test:2 in train:2 (ngram)" in str(grams)
    assert "data.leaks.allowed_ngram to the share you accept (here 0.1)" in str(grams)
    for options in (Leaks(allowed=0.1, allowed_ngram=0.1), Leaks(action="drop"), Leaks(action="ignore")):
        assert _report(options, training, test=evaluation).refusal("leaks.jsonl") is None


def test_only_the_first_leaks_are_listed_but_all_counted() -> None:
    rows = [(f"p{place}", "a") for place in range(1500)]
    report = _report(Leaks(), _pairs("train", *rows), test=_pairs("test", *rows), benchmark=_pairs("b", *rows[:3]))
    assert report.counts["record"] == 1503
    assert len(report.listed) == 1003
    assert report.leaked["benchmark"]["record"] == 3
    assert len(report.training_to_drop) == 1500
    sentence = str(report.refusal("leaks.jsonl"))
    assert "1500 of the 1500 test records" in sentence
    assert "; the first 1,000 of each kind are listed in leaks.jsonl; set" in sentence
    few = _report(Leaks(), _pairs("train", *rows), test=_pairs("test", *rows[:1000]))
    assert "; all are listed in leaks.jsonl; set" in str(few.refusal("leaks.jsonl"))


def test_nothing_is_kept_of_chunks_that_meet_nothing() -> None:
    def size(chunks: int) -> int:
        leaks = Leaks()
        index = LeakIndex(leaks)
        index.add_evaluation("test", leaks.fingerprints(_pairs("test", (LONG, "b"))), ["test:1"])
        for _ in range(chunks):
            index.match_training(leaks.fingerprints(_pairs("train", ("other", "c"))), ["train:1"])
        return len(pickle.dumps(index))

    assert size(200) - size(100) < 100  # the count itself


def test_nothing_to_compare() -> None:
    report = _report(Leaks(), _pairs("train", ("a", "b")))
    assert (report.evaluated, report.listed, report.training_to_drop.tolist()) == ({}, [], [])
    assert report.refusal("x") is None
    assert sum(_report(Leaks(), [], test=_pairs("test", (LONG, "b"))).counts.values()) == 0
    none = _report(Leaks(ngram=None), _pairs("train", (LONG, "b")), test=_pairs("test", (f"{LONG} now", "b")))
    assert sum(none.counts.values()) == 0


def test_evaluation_records_come_first() -> None:
    leaks = Leaks()
    index = LeakIndex(leaks)
    index.match_training(leaks.fingerprints(_pairs("a", ("b", "c"))), ["a:1"])
    with pytest.raises(RuntimeError):
        index.add_evaluation("test", leaks.fingerprints([]), [])


def test_fingerprints_are_selected_and_sent_between_processes() -> None:
    leaks = pickle.loads(pickle.dumps(Leaks(against=("a.jsonl",))))
    records = [*_pairs("a", (LONG, "b", "c"), ("d", LONG)), _text(LONG, "a:3")]
    fingerprints = pickle.loads(pickle.dumps(leaks.fingerprints(records)))
    mask = numpy.array([True, False, True])
    some, expected = fingerprints.select(mask), leaks.fingerprints([records[0], records[2]])
    assert len(some) == 2
    for name in ("record", "prompt", "folded", "worded", "prompt_grams", "answer_grams"):
        assert getattr(some, name).values.tolist() == getattr(expected, name).values.tolist()
        assert getattr(some, name).offsets.tolist() == getattr(expected, name).offsets.tolist()


@pytest.mark.parametrize(
    ("options", "name"),
    [({"overlap": 0.0}, "overlap"), ({"allowed": 1.5}, "allowed"), ({"ngram": 0}, "ngram"), ({"common": 0}, "common")],
)
def test_options_out_of_range_are_refused(options: dict, name: str) -> None:
    with pytest.raises(UserError, match=rf"data\.leaks\.{name}"):
        replace(Leaks(), **options)
