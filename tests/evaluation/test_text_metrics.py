"""Scores against rouge-score and sacrebleu used directly, against hand computation, and against their own laws."""

import math
import sys

import numpy as np
import pytest
import sacrebleu
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from ftlab.errors import UserError
from ftlab.evaluation.text_metrics import METRICS, resolve_metrics, score_texts

PREDICTIONS = [
    "The Eagle is a cheap coffee shop near Burger King.",
    "Anna asks Tom\nto buy the milk.",
    "the cat the cat",
    "",
    "nothing in common",
]
REFERENCES = [
    ["The Eagle is a coffee shop.", "Near Burger King there is a cheap coffee shop, The Eagle.", "A cheap shop."],
    ["Anna asks Tom to buy milk.", "Tom will buy\nthe milk for Anna."],
    ["the cat sat on the mat"],
    ["an answer"],
    ["wholly different words", "quite other ones", "", "and a fourth"],
]
ROUGES = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


def scores(prediction, references, *metrics):
    return score_texts([prediction], [references], resolve_metrics(metrics or list(METRICS))).corpus


def test_rouge_is_rouge_scores_best_reference_and_the_mean_over_records():
    result = score_texts(PREDICTIONS, REFERENCES, resolve_metrics(ROUGES))
    for kind in ROUGES:
        scorer = RougeScorer([kind], use_stemmer=False)
        expected = [
            100 * max(scorer.score(reference, prediction)[kind].fmeasure for reference in references)
            for prediction, references in zip(PREDICTIONS, REFERENCES, strict=True)
        ]
        assert [record[kind] for record in result.records] == pytest.approx(expected, abs=1e-12)
        assert result.corpus[kind] == pytest.approx(np.mean(expected), abs=1e-12)
        assert 0 < result.corpus[kind] < 100
    assert result.signatures == {}


def test_sacrebleu_is_used_as_sacrebleu_says():
    result = score_texts(PREDICTIONS, REFERENCES, resolve_metrics(["bleu", "chrf"]))
    # Several references are streams parallel to the predictions, None where a record has no more of them.
    streams = [[references[i] if i < len(references) else None for references in REFERENCES] for i in range(4)]
    assert result.corpus["bleu"] == sacrebleu.corpus_bleu(PREDICTIONS, streams).score
    assert result.corpus["chrf"] == sacrebleu.corpus_chrf(PREDICTIONS, streams).score
    for record, prediction, references in zip(result.records, PREDICTIONS, REFERENCES, strict=True):
        assert record["bleu"] == pytest.approx(sacrebleu.sentence_bleu(prediction, references).score, abs=1e-9)
        assert record["chrf"] == pytest.approx(sacrebleu.sentence_chrf(prediction, references).score, abs=1e-9)
    version = f"version:{sacrebleu.__version__}"
    assert result.signatures == {
        "bleu": f"nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|{version}",
        "chrf": f"nrefs:var|case:mixed|eff:yes|nc:6|nw:0|space:no|{version}",
    }


def test_the_signature_tells_the_number_of_references():
    result = score_texts(["a b", "c d"], [["a b", "b"], ["c", "d"]], resolve_metrics(["bleu"]))
    assert result.signatures["bleu"].startswith("nrefs:2|")


def test_rouge_by_hand():
    # 3 of 4 predicted words are among the 6 of the reference ("the", "cat", "the"), one pair of 3 among 5, and the
    # longest common subsequence is "the cat the".
    expected = {"rouge1": 2 * 3 / (4 + 6), "rouge2": 2 * 1 / (3 + 5), "rougeL": 2 * 3 / (4 + 6)}
    result = scores("the cat the cat", ["the cat sat on the mat"], "rouge1", "rouge2", "rougeL")
    assert result == pytest.approx({name: 100 * value for name, value in expected.items()})


def test_rouge_lsum_takes_lines_for_sentences():
    # Line by line both sentences are found whole whatever their order; as one text only the longer of them is.
    swapped = scores("d e f g\na b c", ["a b c\nd e f g"], "rougeL", "rougeLsum")
    assert swapped == pytest.approx({"rougeL": 100 * 4 / 7, "rougeLsum": 100.0})


def test_bleu_by_hand():
    # n-gram precisions 5/6, 4/5, 3/4, 2/3, and a brevity penalty of exp(1 - 7/6).
    expected = math.exp(1 - 7 / 6) * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    assert scores("a b c d e x", ["a b c d e f g"], "bleu")["bleu"] == pytest.approx(100 * expected)


def test_chrf_by_hand():
    # "abc" against "abd": 2 of 3 characters, 1 of 2 pairs, 0 of 1 triple; precision and recall are 7/18 each.
    assert scores("abc", ["abd"], "chrf")["chrf"] == pytest.approx(100 * (2 / 3 + 1 / 2) / 3)


@pytest.mark.parametrize(
    ("prediction", "expected"), [("42", 100), (" 42\n", 100), ("forty two", 100), ("Forty two", 0), ("4 2", 0)]
)
def test_exact_match(prediction, expected):
    assert scores(prediction, ["42 ", "forty two"], "exact_match") == {"exact_match": expected}


def test_a_corpus_score_of_bleu_is_not_the_mean_of_its_records():
    result = score_texts(PREDICTIONS, REFERENCES, resolve_metrics(["bleu"]))
    assert abs(result.corpus["bleu"] - np.mean([record["bleu"] for record in result.records])) > 1


words = st.lists(
    st.sampled_from(["the", "a", "cat", "sat", "runs,", "on.", "Anna", "7", "don't", "über", "(it)"]), max_size=12
)
texts = st.lists(words, max_size=2).map(lambda lines: "\n".join(" ".join(line) for line in lines))


@settings(max_examples=60)
@given(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_scores_lie_between_0_and_100(pairs):
    predictions, references = zip(*pairs, strict=True)
    result = score_texts(predictions, references, resolve_metrics(list(METRICS)))
    assert list(result.corpus) == list(METRICS)
    assert len(result.records) == len(pairs)
    for row in (result.corpus, *result.records):
        assert all(0 <= value <= 100 for value in row.values())


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(st.text("abcdefgh", min_size=1, max_size=6), min_size=4, max_size=12), min_size=1, max_size=3
    ).map(lambda lines: "\n".join(" ".join(line) for line in lines)),
    st.lists(texts, max_size=2),
)
def test_identical_text_gives_100(text, others):
    # Four words and more: BLEU of a whole corpus counts up to four in a row.
    result = scores(text, [*others, text])
    assert result == pytest.approx(dict.fromkeys(METRICS, 100.0), abs=1e-9)


@settings(max_examples=60)
@given(texts, st.lists(texts, min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_the_references_does_not_matter(prediction, references, random):
    shuffled = random.sample(references, len(references))
    assert scores(prediction, references) == pytest.approx(scores(prediction, shuffled), abs=1e-9)


def words_kept(prediction: str, references: list[str]) -> float:
    return len(set(prediction.split()) & set(references[0].split()))


NOT_A_FUNCTION = 3.0


def test_a_users_metric_by_dotted_path_and_as_a_function():
    for metric in (f"{__name__}.words_kept", words_kept):
        result = score_texts(PREDICTIONS, REFERENCES, resolve_metrics(["rouge1", metric]))
        assert [record["words_kept"] for record in result.records] == [5, 6, 2, 0, 0]
        assert result.corpus["words_kept"] == pytest.approx(13 / 5)
        assert list(result.corpus) == ["rouge1", "words_kept"]


def test_a_users_metric_in_a_file_beside_the_configuration(tmp_path, monkeypatch):
    (tmp_path / "my_scoring.py").write_text("def shouted(prediction, references):\n    return prediction.isupper()\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert scores("YES", ["yes"], "my_scoring.shouted") == {"shouted": 1.0}
    del sys.modules["my_scoring"]


@pytest.mark.parametrize("value", [1, True, np.float32(1), torch.tensor(1.0), np.array(1)])
def test_what_counts_as_a_number(value):
    def metric(prediction, references):
        return value

    assert scores("a", ["b"], metric) == {"metric": 1.0}


@pytest.mark.parametrize("value", [None, "1", math.nan, math.inf, [1.0], torch.ones(2), np.ones(2), {}])
def test_a_metric_that_returns_no_number_is_refused(value):
    def odd(prediction, references):
        return value if prediction == "b" else 1.0

    with pytest.raises(UserError, match=r"metric odd returned .* for record 2: it must return a finite number"):
        score_texts(["a", "b"], [["a"], ["b"]], resolve_metrics([odd]))


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["rouge3"], "there is no rouge3: take one of rouge1, rouge2, rougeL, rougeLsum, bleu, chrf, exact_match, or"),
        (["no_such_package.metric"], "no_such_package.metric cannot be imported"),
        (["math.no_such_function"], "math.no_such_function cannot be imported"),
        ([".relative"], ".relative cannot be imported"),
        ([f"{__name__}.NOT_A_FUNCTION"], "is not a function: it is a float"),
        (["bleu", "rouge1", "bleu"], "bleu is named twice"),
        ([words_kept, words_kept], "words_kept is named twice"),
    ],
)
def test_metrics_that_cannot_be_resolved_are_refused(names, sentence):
    with pytest.raises(UserError, match=sentence):
        resolve_metrics(names)


def test_a_users_metric_cannot_take_a_shipped_name():
    def bleu(prediction, references):
        return 100.0

    with pytest.raises(UserError, match="rename the function"):
        resolve_metrics([bleu])


@pytest.mark.parametrize(
    ("predictions", "references", "sentence"),
    [
        (["a", "b"], [["a"]], "2 predictions cannot be scored against the references of 1 records"),
        ([], [], "no record to score"),
        (["a", "b"], [["a"], []], "record 2 has no reference"),
        (["a", "b"], [["a"], "b"], "references of record 2 are one string"),
    ],
)
def test_records_that_cannot_be_scored_are_refused(predictions, references, sentence):
    with pytest.raises(UserError, match=sentence):
        score_texts(predictions, references, resolve_metrics(["rouge1"]))
