"""Bad input, each kind with its answer: mended, dropped with a reason, or refused by file, line and field."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from character_tokenizers import BOS, CHATML, EOS, IM_END, IM_START, UNK, ids

from ftlab.data import FinetuneData
from ftlab.data.assignment import Splits
from ftlab.data.cleaning import Cleaning
from ftlab.errors import UserError
from ftlab.networks import Network

Make = Callable[..., FinetuneData]
GOOD = {"prompt": "good", "completion": "yes"}
TALK = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.role[0] }}:{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture
def make(network: Network, tmp_path: Path) -> Make:
    """Data over `set/train.jsonl`, which is written from lines of text or from rows."""

    def make_data(lines: bytes | list[Any], name: str = "train.jsonl", **options: Any) -> FinetuneData:
        path = tmp_path / "set" / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(lines, list):
            lines = "".join(json.dumps(row) + "\n" for row in lines).encode()
        path.write_bytes(lines)
        malformed = options.pop("malformed", "refuse")
        defaults = {"path": str(path.parent), "splits": Splits(0, 0), "clean": Cleaning(malformed=malformed)}
        return FinetuneData(network, **(defaults | options))

    return make_data


@pytest.fixture
def template(tmp_path: Path) -> Callable[[str], str]:
    def write_template(text: str) -> str:
        (tmp_path / "own.jinja").write_text(text)
        return str(tmp_path / "own.jinja")

    return write_template


def _rows(data: FinetuneData) -> list[list[int]]:
    return [list(row.input_ids) for row in data.rows("train")]


def _dropped(data: FinetuneData) -> list[dict[str, str]]:
    lines = (data.prepared.directory / "dropped.jsonl").read_bytes().decode("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _turns(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


MALFORMED = {
    "another schema": (
        GOOD,
        {"question": "a", "answer": "b"},
        "has no column prompt; its columns are question, answer",
    ),
    "a column less": (GOOD, {"prompt": "a"}, "has neither column completion nor response; its columns are prompt: add"),
    "another type": (GOOD, {"prompt": "a", "completion": {"text": "b"}}, "column completion is an object, not text"),
    "null": (GOOD, {"prompt": None, "completion": "b"}, "column prompt is null, not text; mend it or"),
    "NaN": (GOOD, {"prompt": "a", "completion": float("nan")}, "column completion is NaN, not text; mend it or"),
    "NaN in a list": (
        GOOD,
        {"prompt": "a", "completion": ["b", float("nan")]},
        "column completion[1] is NaN, not text",
    ),
    "null in a list": (GOOD, {"prompt": "a", "completion": ["b", None]}, "column completion[1] is null, not text"),
    "an empty list": (GOOD, {"prompt": "a", "completion": []}, "column completion is an empty list; give at least one"),
    "no messages": (TALK, {"messages": []}, "column messages is an empty list; give at least one message"),
    "null for messages": (TALK, {"messages": None}, "column messages is null, not a list of messages; mend it"),
    "a null message": (TALK, {"messages": [None, *TALK["messages"]]}, "column messages[0] is null, not an object with"),
    "null content": (TALK, _turns(("user", None), ("assistant", "a")), "column messages[0].content is null, not text"),
    "no role": (TALK, {"messages": [{"content": "a"}]}, "column messages[0] has no role; its keys are content: write"),
    "nobody answers": (TALK, _turns(("user", "a"), ("user", "b")), "column messages has no assistant's turn, so there"),
    "nothing is asked": (TALK, _turns(("assistant", "a")), "column messages has no turn before its last assistant's"),
    "an unknown speaker": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"conversations": [{"from": "martian", "value": "a"}, {"from": "gpt", "value": "b"}]},
        "column conversations[0].from is 'martian'; known are human, user, gpt",
    ),
    "an unknown token": ({"input_ids": [7, 8]}, {"input_ids": [7, 800]}, "input_ids holds 800, which the tokenizer"),
    "a null token": (
        {"input_ids": [7, 8]},
        {"input_ids": [7, None]},
        "column input_ids[1] is null, not a whole number",
    ),
    "two conversations": (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": _turns(("user", "x"), ("assistant", "b"))["messages"], "rejected": "c"},
        "columns chosen and rejected differ before their last turns; mend one",
    ),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_records(make: Make, template: Callable[[str], str], kind: str) -> None:
    """Refused by file, line and field; or dropped with the same words, and the good ones are as they were."""
    good, bad, said = MALFORMED[kind]
    options = {"template": template(STRICT)} if "messages" in good or "conversations" in good else {}
    with pytest.raises(UserError) as refused:
        make([good, bad], **options).rows("train")
    assert str(refused.value).startswith("train.jsonl:2")
    assert said in str(refused.value)
    data = make([good, bad, good | {"id": 3}], malformed="drop", **options)
    first, repeated = _dropped(data)
    assert (first["rule"], first["source"]) == (f"malformed: {refused.value}", "train.jsonl:2")
    assert (repeated["rule"], repeated["source"]) == ("exact_duplicate", "train.jsonl:3")
    assert data.prepared.report["dropped"] == {"malformed": 1, "exact_duplicate": 1}
    assert _rows(data) == _rows(make([good], **options))


class TestEmpty:
    @pytest.mark.parametrize(
        ("bad", "rule"),
        [
            (_turns(("user", " "), ("assistant", "a")), "empty_prompt"),
            (_turns(("user", "a"), ("assistant", "")), "empty_answer"),
            (_turns(("system", "a"), ("user", ""), ("assistant", "b")), "empty_prompt"),
        ],
    )
    def test_dropped_by_a_rule_of_their_own(
        self, make: Make, template: Callable[[str], str], bad: dict[str, Any], rule: str
    ) -> None:
        data = make([TALK, bad], template=template(CHATML.replace("<|im_end|>", "</s>")))
        assert [(each["rule"], each["source"]) for each in _dropped(data)] == [(rule, "train.jsonl:2")]

    def test_an_empty_answer_is_refused_where_the_rule_is_off(self, make: Make) -> None:
        bad = {"prompt": "a", "completion": " "}
        with pytest.raises(UserError, match=r"train\.jsonl:2: the response is empty, so nothing would be learned"):
            make([GOOD, bad], clean=Cleaning(empty=False)).rows("train")
        data = make([GOOD, bad], clean=Cleaning(empty=False, malformed="drop"))
        assert _dropped(data)[0]["rule"].startswith("malformed: train.jsonl:2: the response is empty")

    def test_an_empty_prompt_stands_where_the_rule_is_off(self, make: Make) -> None:
        data = make([{"prompt": "", "completion": "b"}], clean=Cleaning(empty=False))
        assert _rows(data) == [[BOS, *ids("b"), EOS]]

    @pytest.mark.parametrize("lines", [b"", b"\n \r\n\n", b"\xef\xbb\xbf"])
    def test_a_file_without_records(self, make: Make, lines: bytes) -> None:
        with pytest.raises(UserError, match=r"train\.jsonl holds no records; give a file with at least one"):
            make(lines).rows("train")


class TestBytes:
    @pytest.mark.parametrize("malformed", ["refuse", "drop"])
    def test_invalid_utf_8(self, make: Make, malformed: str) -> None:
        """The file is damaged, and who knows where else: it is refused whatever is said of single records."""
        lines = json.dumps(GOOD).encode() + b'\n{"prompt": "caf\xe9", "completion": "b"}\n'
        with pytest.raises(
            UserError, match=r"train\.jsonl:2 is not UTF-8 \(byte 0xe9\); convert .*train\.jsonl to UTF-8"
        ):
            make(lines, malformed=malformed).rows("train")

    @pytest.mark.parametrize("malformed", ["refuse", "drop"])
    @pytest.mark.parametrize(
        ("line", "said"),
        [
            (b'{"prompt": "a", "completion": "b"', r"train\.jsonl:2 is broken JSON \(.* column 34\)"),
            (b'["a", "b"]', r"train\.jsonl:2 is a list, not an object with columns"),
            (b'{"prompt": "a", "completion": "b", "prompt": "c"}', r'train\.jsonl:2 names "prompt" twice'),
        ],
    )
    def test_broken_lines(self, make: Make, line: bytes, said: str, malformed: str) -> None:
        with pytest.raises(UserError, match=said):
            make(json.dumps(GOOD).encode() + b"\n" + line + b"\n", malformed=malformed).rows("train")

    def test_byte_order_marks(self, make: Make) -> None:
        """One before the file is no text; one within a text is taken out, or stays where that is wished."""
        lines = b'\xef\xbb\xbf{"prompt": "a", "completion": "\xef\xbb\xbfb"}\n'
        assert _rows(make(lines)) == [[BOS, *ids("ab"), EOS]]
        assert _rows(make(lines, clean=Cleaning(control_characters=False))) == [[BOS, *ids("a"), UNK, *ids("b"), EOS]]

    @pytest.mark.parametrize("name", ["train.jsonl", "train.csv", "train.json", "train.tsv"])
    def test_windows_line_ends(self, make: Make, name: str) -> None:
        """Between records, and within texts, where they become line feeds."""
        lines = {
            "train.jsonl": b'{"prompt": "a\\r\\nb", "completion": "c"}\r\n\r\n{"prompt": "d", "completion": "e"}\r\n',
            "train.json": b'[{"prompt": "a\\r\\nb", "completion": "c"},\r\n{"prompt": "d", "completion": "e"}]\r\n',
            "train.csv": b'prompt,completion\r\n"a\r\nb",c\r\nd,e\r\n',
            "train.tsv": b'prompt\tcompletion\r\n"a\r\nb"\tc\r\nd\te\r\n',
        }[name]
        data = make(lines, name)
        assert _rows(data) == [[BOS, *ids("a\nbc"), EOS], [BOS, *ids("de"), EOS]]
        assert data.prepared.report["mended"] == 1

    def test_ten_megabytes_of_one_record(self, make: Make) -> None:
        """Left out by its characters, before it costs a tokeniser's time."""
        data = make([GOOD, {"prompt": "a" * 10_000_000, "completion": "b"}], clean=Cleaning(max_characters=1_000_000))
        assert [(each["rule"], len(each["text"])) for each in _dropped(data)] == [("too_many_characters", 200)]
        assert _rows(data) == [[BOS, *ids("goodyes"), EOS]]

    @pytest.mark.slow
    def test_ten_megabytes_are_encoded(self, make: Make) -> None:
        """Running text goes in pieces, each token once; a pair is refused."""
        size = 10_000_000
        rows = make([{"text": "ab" * (size // 2)}, {"text": "c"}], overflow="split").rows("train")
        assert (int(rows.lengths.sum()), int(rows.lengths.max())) == (size + 2 + 3, 64)
        with pytest.raises(UserError, match=r"train\.jsonl:2 takes 10000003 tokens where data\.max_length allows 64"):
            make([GOOD, {"prompt": "a" * size, "completion": "b"}]).rows("train")


class TestColumns:
    def test_repeated_ids_are_no_matter(self, make: Make) -> None:
        data = make([GOOD | {"id": 1}, {"prompt": "a", "completion": "b", "id": 1}])
        assert len(data.rows("train")) == 2
        assert data.prepared.report["dropped"] == {}

    def test_a_table_with_holes(self, make: Make, tmp_path: Path) -> None:
        """Null and NaN of Parquet, in columns that are read and others."""
        table = {"prompt": ["a", None, "c"], "completion": ["b", "b", "d"], "score": [float("nan"), None, 1.0]}
        (tmp_path / "set").mkdir()
        pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "set" / "train.parquet")
        data = make([GOOD], "unread.jsonl", path=str(tmp_path / "set"), malformed="drop")
        assert _rows(data) == [[BOS, *ids("ab"), EOS], [BOS, *ids("cd"), EOS]]
        (dropped,) = _dropped(data)
        assert dropped["rule"] == (
            "malformed: train.parquet#2: column prompt is null, not text; mend it or name another column"
        )

    def test_numbers_are_text(self, make: Make) -> None:
        data = make([{"prompt": 7, "completion": True}, {"prompt": 1.5, "completion": ["a", 2]}])
        assert _rows(data) == [[BOS, *ids(text), EOS] for text in ("7True", "1.5a", "1.52")]


class TestTemplates:
    TWICE = _turns(("user", "a"), ("user", "b"), ("assistant", "c"))

    def test_two_user_turns_where_the_template_refuses(self, make: Make, template: Callable[[str], str]) -> None:
        options = {"template": template(STRICT)}
        with pytest.raises(
            UserError, match=r"train\.jsonl:2: the chat template .* fails on .* \(roles must alternate\)"
        ):
            make([TALK, self.TWICE], **options).rows("train")
        data = make([TALK, self.TWICE], malformed="drop", **options)
        assert len(data.rows("train")) == 1
        assert "roles must alternate" in _dropped(data)[0]["rule"]
        assert _dropped(data)[0]["text"] == "user: a\nuser: b ⇒ c"

    def test_two_user_turns_where_the_template_takes_them(
        self, make: Make, chat_tokenizer: Any, tmp_path: Path
    ) -> None:
        chat_tokenizer.save_pretrained(tmp_path / "chat")
        data = FinetuneData(Network(str(tmp_path / "chat")), make([self.TWICE]).sources[0].path, splits=Splits(0, 0))

        def turn(role: str, content: str) -> list[int]:
            return [IM_START, *ids(f"{role}\n{content}"), IM_END]

        end = ids("\n")
        (row,) = data.rows("train")
        expected = [*turn("user", "a"), *end, *turn("user", "b"), *end, *turn("assistant", "c")]
        assert list(row.input_ids) == expected
        assert [label for label in row.labels.tolist() if label != -100] == [*ids("c"), IM_END]

    def test_an_unknown_role_is_the_templates_matter(self, make: Make, template: Callable[[str], str]) -> None:
        row = _turns(("martian", "a"), ("assistant", "c"))
        with pytest.raises(UserError, match=r"train\.jsonl:1: the chat template .* \(roles must alternate\)"):
            make([row], template=template(STRICT)).rows("train")
        data = make([row], template=template(CHATML.replace("<|im_start|>", "").replace("<|im_end|>", "</s>")))
        assert _rows(data) == [[*ids("martian\na"), EOS, *ids("\nassistant\nc"), EOS]]

    def test_several_turns_without_a_template(self, make: Make) -> None:
        with pytest.raises(
            UserError, match=r"train\.jsonl:1 is a conversation of several turns .* set data\.template to"
        ):
            make([self.TWICE]).rows("train")

    @pytest.mark.parametrize("text", ["", "{# nothing #}", "{% for m in messages %}{{ m.role }}</s>{% endfor %}"])
    def test_a_template_that_renders_nothing(self, make: Make, template: Callable[[str], str], text: str) -> None:
        with pytest.raises(UserError, match=r"the chat template of .* renders a conversation that does not begin with"):
            make([TALK], template=template(text)).rows("train")

    def test_a_template_that_renders_nothing_of_one_record(self, make: Make, template: Callable[[str], str]) -> None:
        """Such as one that leaves out an answer by what it says."""
        text = "{% for m in messages %}{{ m.role[0] }}:{{ m.content if m.content != 'secret' }}</s>{% endfor %}"
        options = {"template": template(text)}
        rows = [TALK, _turns(("user", "a"), ("assistant", "secret"))]
        with pytest.raises(
            UserError, match=r"train\.jsonl:2: .* renders nothing of this answer; mend the record or the"
        ):
            make(rows, **options).rows("train")
        data = make(rows, malformed="drop", **options)
        assert len(data.rows("train")) == 1
        assert data.prepared.report["dropped"] == {"malformed": 1}


HALF = {"prompt": "a\ud83d", "completion": "b"}


class TestSurrogates:
    """Halves of surrogate pairs: JSON can write them, UTF-8 and tokenizers cannot."""

    def test_they_are_mended(self, make: Make) -> None:
        data = make([HALF])
        assert _rows(data) == [[BOS, *ids("ab"), EOS]]
        assert data.prepared.report["mended"] == 1

    def test_or_refused_where_they_are_to_stay(self, make: Make) -> None:
        clean = {"control_characters": False, "unicode": "none", "whitespace": "none"}
        with pytest.raises(UserError, match=r"train\.jsonl:2: column prompt has half a surrogate pair at character 1"):
            make([GOOD, HALF], clean=Cleaning(**clean)).rows("train")  # type: ignore[arg-type]
        data = make([GOOD, HALF], clean=Cleaning(malformed="drop", **clean))  # type: ignore[arg-type]
        assert len(data.rows("train")) == 1
        assert _dropped(data)[0]["source"] == "train.jsonl:2"

    @pytest.mark.parametrize("malformed", ["refuse", "drop"])
    def test_in_names_of_columns_and_keys(self, make: Make, template: Callable[[str], str], malformed: str) -> None:
        """Columns that are not read may be called so; keys that a template might write may not."""
        assert len(make([GOOD | {"\ud83d": 1}]).rows("train")) == 1
        turn = {"role": "assistant", "content": "c", "tool_calls": [{"name": "f", "arguments": {"\ud83d": 1}}]}
        rows = [TALK, {"messages": [{"role": "user", "content": "a"}, turn]}]
        call = "{{ m.tool_calls[0].function.arguments if m.tool_calls }}"
        text = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}" + call + "</s>{% endfor %}"
        options = {"template": template(text), "malformed": malformed}
        if malformed == "refuse":
            with pytest.raises(UserError, match=r"train\.jsonl:2: .* half a surrogate pair"):
                make(rows, **options).rows("train")
        else:
            assert len(make(rows, **options).rows("train")) == 1

    def test_in_the_name_of_a_file(self, make: Make, tmp_path: Path) -> None:
        """A name in another encoding comes from the system with halves of pairs."""
        name = "caf\udce9.jsonl"
        rows = [{"prompt": f"a{n}", "completion": "b" if n else " "} for n in range(40)]
        make([GOOD])
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = make([GOOD], path=str(path), splits=Splits(5, 5))
        assert len(data.records("test")) == 5
        assert all(record.source.startswith("caf\udce9.jsonl:") for record in data.records("test"))
        assert [each["source"] for each in _dropped(data)] == ["caf\udce9.jsonl:1"]
        assert list(data.prepared.report["sources"]) == [str(path)]
