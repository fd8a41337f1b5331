"""What a preparation is known by: everything that decides its rows is in the key, and nothing else."""

import ast
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from character_tokenizers import CHARACTERS, character_tokenizer
from transformers import PreTrainedTokenizerFast

from ftlab.data import FinetuneData, corpus
from ftlab.data.assignment import Splits
from ftlab.data.cleaning import Cleaning
from ftlab.data.duplicates import Duplicates
from ftlab.data.leaks import Leaks
from ftlab.data.mixing import Mixing, Source
from ftlab.errors import UserError
from ftlab.networks import Network

Write = Callable[..., str]
Make = Callable[..., FinetuneData]
ROWS = [{"prompt": "a", "completion": "b", "topic": "t"}, {"prompt": "c", "completion": "d", "topic": "u"}]
PACKAGE = Path(corpus.__file__).parent
TURNS = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}</s>{% endfor %}"


@pytest.fixture
def make(network: Network, write: Write) -> Make:
    path = write("set/train.jsonl", ROWS)
    write("set/test.jsonl", [{"prompt": "x", "completion": "y", "topic": "t"}])

    def make_data(**options: Any) -> FinetuneData:
        return FinetuneData(**({"network": network, "path": str(Path(path).parent), "splits": Splits(0, 0)} | options))

    return make_data


def _key(data: FinetuneData) -> str:
    return data.corpus.key(data.encoder)


class TestKey:
    @pytest.mark.parametrize(
        "options",
        [
            {"batch_size": 3},
            {"batching": "pack"},
            {"batch_tokens": 100},
            {"eval_batch_size": 2},
            {"validation_limit": 1},
            {"test_limit": 1},
            {"workers": 2},
            {"preparation_workers": 2},
            {"seed": 1},
            {"mixing": Mixing("probability")},
            {"max_length": 64},  # the network's context, which is the default
        ],
    )
    def test_what_decides_no_row(self, make: Make, options: dict[str, Any]) -> None:
        assert _key(make(**options)) == _key(make())

    @pytest.mark.parametrize(
        "options",
        [
            {"format": "pairs"},
            {"prompt": "{prompt}", "response": "{completion}"},
            {"group_by": "topic"},
            {"stratify_by": "topic"},
            {"sample_by": "line"},
            {"learn": "all"},
            {"learn": ["assistant"]},
            {"max_length": 63},
            {"overflow": "drop"},
            {"truncate_from": "right"},
            {"clean": Cleaning(unicode="NFKC")},
            {"clean": Cleaning(control_characters=False)},
            {"clean": Cleaning(whitespace="strip")},
            {"clean": Cleaning(empty=False)},
            {"clean": Cleaning(max_characters=99)},
            {"clean": Cleaning(malformed="drop")},
            {"duplicates": Duplicates(exact=False)},
            {"duplicates": Duplicates(near=0.8)},
            {"splits": Splits(0, 0.1)},
            {"leaks": Leaks("drop")},
            {"leaks": Leaks(ngram=8)},
        ],
    )
    def test_what_decides_rows(self, make: Make, options: dict[str, Any]) -> None:
        assert _key(make(**options)) != _key(make())

    def test_contents_count_and_places_do_not(self, make: Make, tmp_path: Path) -> None:
        key = _key(make())
        shutil.move(tmp_path / "set", tmp_path / "elsewhere")
        moved = {"path": str(tmp_path / "elsewhere")}
        assert _key(make(**moved)) == key
        for file in ("train", "test"):
            with (tmp_path / "elsewhere" / f"{file}.jsonl").open("a") as lines:
                lines.write('{"prompt": "e", "completion": "f", "topic": "t"}\n')
            assert key != (key := _key(make(**moved)))

    def test_which_split_a_file_is(self, make: Make, tmp_path: Path) -> None:
        key = _key(make())
        (tmp_path / "set" / "test.jsonl").rename(tmp_path / "set" / "dev.jsonl")
        assert _key(make()) != key

    def test_of_a_source_what_decides_its_rows(self, make: Make, tmp_path: Path) -> None:
        path = str(tmp_path / "set")

        def key(**options: Any) -> str:
            return _key(make(path=None, sources=[Source(path), Source(path, **options)]))

        assert key(weight=2.0) == key(epochs=3) == key()
        others = [key(limit=1), key(prompt="{prompt}", response="{topic}"), key(format="pairs"), key(sample_by="line")]
        assert len({key(), *others}) == 5

    def test_the_tokenizer_and_its_place(
        self, make: Make, network: Network, plain_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
    ) -> None:
        shutil.copytree(network.path, tmp_path / "copy")
        assert _key(make(network=Network(str(tmp_path / "copy")))) == _key(make())
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
        other = character_tokenizer(["<unk>", "<s>", "</s>", "<pad>"], "<s> $A", **names)
        other.add_tokens([CHARACTERS[1] * 2])
        other.save_pretrained(tmp_path / "copy")
        assert _key(make(network=Network(str(tmp_path / "copy")))) != _key(make())

    def test_the_template_and_its_place(self, make: Make, tmp_path: Path) -> None:
        keys = []
        for name, text in (("one", TURNS), ("two", TURNS), ("three", TURNS.replace(":", "="))):
            (tmp_path / f"{name}.jinja").write_text(text)
            keys.append(_key(make(template=str(tmp_path / f"{name}.jinja"))))
        assert keys[0] == keys[1]
        assert len({_key(make()), keys[0], keys[2]}) == 3

    def test_a_benchmark_and_its_place(self, make: Make, write: Write) -> None:
        keys = []
        for name, prompt in (("one", "p"), ("two", "p"), ("three", "q")):
            path = write(f"{name}.jsonl", [{"prompt": prompt, "completion": "b"}])
            keys.append(_key(make(leaks=Leaks(against=(path,)))))
        assert keys[0] == keys[1]
        assert len({_key(make()), keys[0], keys[2]}) == 3

    def test_a_users_function(self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its source counts, whether it stands in the module that is named or in one that this imports it from."""
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "own_named.py").write_text("from own_written import read\n")
        keys = []
        for name in ("own_named.read", "own_written.read"):
            for text in ("columns", "columns", "dict(columns)"):
                (tmp_path / "own_written.py").write_text(f"def read(columns):\n    return {text}\n")
                for module in ("own_named", "own_written"):
                    monkeypatch.delitem(sys.modules, module, raising=False)
                keys.append(_key(make(function=name)))
        assert keys[0] == keys[1]
        assert keys[3] == keys[4]
        assert len({_key(make()), *keys}) == 5

    def test_a_function_in_c(self, make: Make) -> None:
        assert _key(make(function="copy.copy")) != _key(make(function="builtins.dict")) != _key(make())

    def test_a_function_that_cannot_be_imported(self, make: Make) -> None:
        with pytest.raises(UserError, match=r"data\.function: not_there\.read cannot be imported"):
            _key(make(function="not_there.read"))

    def test_code(self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A change in any file of the package but those that are named for it makes another key."""
        shutil.copytree(PACKAGE, tmp_path / "code")
        monkeypatch.setattr(corpus, "__file__", str(tmp_path / "code" / "corpus.py"))
        data = make()
        key = _key(data)
        for file in sorted((tmp_path / "code").glob("*.py")):
            text = file.read_text()
            file.write_text(text + "# changed\n")
            assert (_key(data) == key) == (file.stem in corpus._NO_ROWS), file.stem
            file.write_text(text)


def test_no_file_that_prepares_is_left_out_of_the_key() -> None:
    """Of what preparation imports only this does not count: options that are in the key themselves, the class of a
    row, who keeps the rows, and who reports progress."""
    found, waiting = set(), ["corpus"]
    while waiting:
        name = waiting.pop()
        found.add(name)
        for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ftlab.data."):
                waiting += {str(node.module).removeprefix("ftlab.data.")} - found - set(waiting)
    assert found & corpus._NO_ROWS == {"cache", "collators", "mixing", "progress"}
    assert {file.stem for file in PACKAGE.glob("*.py")} == found | corpus._NO_ROWS


class TestSplitsThereAre:
    def test_given_and_carved(self, make: Make, write: Write) -> None:
        pool = write("pool.jsonl", ROWS)
        for path, splits, expected in (
            (pool, Splits(0.1, 0.1), ["train", "validation", "test"]),
            (pool, Splits(0, 2), ["train", "test"]),
            (str(Path(pool).parent / "set"), Splits(0.1, 0), ["train", "validation", "test"]),
            (str(Path(pool).parent / "set"), Splits(0, 0.1), ["train", "test"]),
        ):
            data = make(path=path, splits=splits)
            assert [split for split in ("train", "validation", "test") if data.has_split(split)] == expected  # type: ignore[arg-type]
