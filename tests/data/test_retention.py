"""Retention sets: what is measured of them, what is refused, and that training does not hold them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ftlab.data import FinetuneData
from ftlab.data.leaks import Leaks
from ftlab.data.retained import Document, windows
from ftlab.data.retention import RetentionSet
from ftlab.errors import UserError
from ftlab.networks import Network

SENTENCE = "Zeno asks Ralf to clean fifty tiny ropes at the bridge because the guard is late on a cold day"
OTHER = "Mara has to bring twenty golden lamps from the old mill to the small harbour before the long night"
Make = Callable[..., FinetuneData]


@pytest.fixture
def make(make_data: Make) -> Make:
    """Data whose records are cut to the tokenizer's 64 characters."""
    return lambda **options: make_data(**({"overflow": "truncate"} | options))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(name: str, *rows: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({"text": r} if isinstance(r, str) else r) + "\n" for r in rows))
        return str(path)

    return write


@given(st.lists(st.integers(0, 99), max_size=40), st.integers(2, 12))
def test_every_token_but_the_first_is_a_target_once(ids: list[int], length: int) -> None:
    rows = list(windows(ids, length, "x"))
    predicted = [token for row in rows for start, end in row.spans for token in row.input_ids[max(start, 1) : end]]
    assert predicted == ids[1:]
    assert all(2 <= len(row.input_ids) <= length for row in rows)
    assert all(row.labels[0] == -100 for row in rows)


def whole(document: Document) -> list[int]:
    """The tokens of a text that was cut into windows."""
    first, *others = [list(row.input_ids) for row in document.rows]
    return [*first, *(token for window in others for token in window[1:])]


def test_texts_are_what_the_tokenizer_makes_of_them_without_an_end(
    make: Make, network: Network, write: Callable[..., str]
) -> None:
    path = write("known.jsonl", SENTENCE, "", OTHER, " \n")
    documents = make(retention=[RetentionSet("known", path)]).retained.documents["known"]
    tokenizer = AutoTokenizer.from_pretrained(network.path)
    assert [whole(document) for document in documents] == [tokenizer(text)["input_ids"] for text in (SENTENCE, OTHER)]
    assert [document.source for document in documents] == ["known.jsonl:1", "known.jsonl:3"]


def test_special_tokens_that_are_spelt_out_are_not_set_twice(
    make: Make, network: Network, write: Callable[..., str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(network.path)
    path = write("known.jsonl", f"<s>{SENTENCE}</s>", OTHER)
    ids = whole(make(retention=[RetentionSet("known", path)]).retained.documents["known"][0])
    assert ids == [*tokenizer(SENTENCE)["input_ids"], tokenizer.eos_token_id]
    assert ids[0] == tokenizer.bos_token_id != ids[1]


def test_a_text_is_cut_at_the_networks_context_whatever_rows_of_training_are_cut_at(
    make: Make, write: Callable[..., str]
) -> None:
    path = write("known.jsonl", SENTENCE, OTHER)
    data = make(retention=[RetentionSet("known", path), RetentionSet("short", path, window=10)], max_length=32)
    lengths = {name: max(len(r.input_ids) for r in found[0].rows) for name, found in data.retained.documents.items()}
    assert lengths == {"known": 64, "short": 10}


def test_records_that_ask_the_same_are_one_document_with_every_answer(make: Make, write: Callable[..., str]) -> None:
    path = write(
        "task.jsonl",
        {"prompt": "Is it?", "completion": "Yes."},
        {"prompt": "Who?", "completion": "Zeno."},
        {"prompt": "Is it?", "completion": "No."},
    )
    documents = make(retention=[RetentionSet("task", path)]).retained.documents["task"]
    assert [len(document.rows) for document in documents] == [2, 1]
    assert all(document.record is None for document in documents)  # nothing is to be answered


def test_the_test_split_is_taken_where_there_are_several(make: Make, data_path: str) -> None:
    sets = [RetentionSet("test", data_path), RetentionSet("dev", data_path, split="validation", limit=2)]
    data = make(retention=sets, path=f"{data_path}/dev.jsonl", leaks=Leaks(action="ignore"))
    documents = data.retained.documents
    assert [document.source.split(":")[0] for document in documents["test"]] == ["test.jsonl"] * 4
    assert len(documents["dev"]) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"path": "nowhere"}, "data.retention known: nowhere is neither"),
        ({"path": "task.jsonl", "split": "test"}, "has no test split, only train"),
        ({"path": "one.txt"}, "holds 1 documents, and an interval is over several; set sample_by"),
        ({"path": "text.jsonl", "score": True}, "score asks for answers, and running text asks nothing"),
        ({"path": "text.jsonl", "window": 65}, "window is 65, beyond the network's context of 64"),
        ({"path": "text.jsonl", "prompt": "{question}", "response": "{answer}"}, "has no column question"),
        ({"path": "text.jsonl", "limit": 1}, "limit is 1; give 2 or more"),
        ({"path": "text.jsonl", "name": "a b"}, "'a b' is no name"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(
    options: dict[str, Any],
    sentence: str,
    make: Make,
    write: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write("task.jsonl", {"prompt": "Is it?", "completion": "Yes."}, {"prompt": "Who?", "completion": "Zeno."})
    write("text.jsonl", SENTENCE, OTHER)
    Path("one.txt").write_text(f"{SENTENCE}\n\n{OTHER}")
    with pytest.raises(UserError) as error:
        _ = make(retention=[RetentionSet(**({"name": "known"} | options))]).retained.documents
    assert sentence in str(error.value)
    assert str(error.value).startswith("data.retention")
    assert "\n" not in str(error.value)


def test_two_sets_of_one_name_are_refused(make: Make) -> None:
    with pytest.raises(UserError, match="two sets of the name known"):
        make(retention=[RetentionSet("known", "a"), RetentionSet("known", "b")])


# ---------------------------------------------------------------- not in training


def training(*texts: str) -> list[dict[str, str]]:
    return [{"text": text} for text in texts]


PLENTY = [f"{word} {n} is here" for n, word in enumerate(SENTENCE.split())]


@pytest.mark.parametrize(
    ("trained", "known"),
    [
        ([SENTENCE, *PLENTY], [SENTENCE, OTHER]),
        ([f"It is said that {SENTENCE.upper()}, and so on.", *PLENTY], [SENTENCE, OTHER]),
        ([f"A story.\n\n{SENTENCE}\n\nThe end.", *PLENTY], [f"{OTHER}\n{SENTENCE}", OTHER]),
        ([SENTENCE, *PLENTY], ["\n".join([*PLENTY, OTHER, SENTENCE, *PLENTY]), OTHER]),
    ],
    ids=["the same", "within a text", "of one paragraph each", "a line of a long text"],
)
def test_what_is_also_trained_on_is_refused(
    trained: list[str], known: list[str], make: Make, write: Callable[..., str]
) -> None:
    path = write("training/train.jsonl", *training(*trained))
    write("training/dev.jsonl", *training("Something else"))
    data = make(path=str(Path(path).parent), retention=[RetentionSet("known", write("known.jsonl", *known))])
    with pytest.raises(UserError) as error:
        _ = data.prepared
    sentence = str(error.value)
    assert sentence.startswith("data.retention known: 1 of its ")
    assert "passages are also found in training: known.jsonl:1 in train.jsonl:1 (" in sentence
    assert "\n" not in sentence


def test_records_that_ask_are_looked_for_as_test_records_are(make: Make, data_path: str) -> None:
    data = make(retention=[RetentionSet("task", data_path, split="train")])
    with pytest.raises(UserError, match=r"data.retention task: 15 of its 15 passages are also found in training"):
        _ = data.prepared


@pytest.mark.parametrize("action", ["drop", "ignore"])
def test_training_does_not_depend_on_what_is_to_be_kept(action: Any, make: Make, data_path: str) -> None:
    """Where it is not refused: a share that is accepted takes nothing out of training, whatever data.leaks does."""
    known = RetentionSet("known", data_path, split="train")
    leaks = Leaks(action=action, allowed=1.0, allowed_ngram=1.0)
    plain, kept = make(leaks=leaks), make(leaks=leaks, retention=[known])
    assert kept.prepared.fingerprint == plain.prepared.fingerprint
    assert kept.identity() == plain.identity()


@pytest.mark.parametrize("action", ["drop", "ignore"])
def test_it_is_refused_whatever_is_done_about_other_leaks(action: Any, make: Make, write: Callable[..., str]) -> None:
    write("training/train.jsonl", *training(SENTENCE, *PLENTY))
    path = write("training/dev.jsonl", *training("Something else"))
    known = RetentionSet("known", write("known.jsonl", SENTENCE, OTHER))
    data = make(path=str(Path(path).parent), leaks=Leaks(action=action), retention=[known])
    with pytest.raises(UserError, match=r"data.retention known: 1 of its 2 passages"):
        _ = data.prepared


def test_a_stream_refuses_it_when_it_comes(make: Make, write: Callable[..., str]) -> None:
    write("training/train.jsonl", *training(*PLENTY, SENTENCE))
    path = write("training/dev.jsonl", *training("Something else"))
    known = RetentionSet("known", write("known.jsonl", SENTENCE, OTHER))
    data = make(path=str(Path(path).parent), streaming=True, leaks=Leaks(ngram=None), retention=[known])
    with pytest.raises(UserError, match=r"data.retention known: 1 of its 2 passages"):
        list(data.stream.rows())
