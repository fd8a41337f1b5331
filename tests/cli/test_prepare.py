"""`ftlab prepare`: what it prints, writes and refuses, and every snippet and command of docs/how-to/data.md."""

import csv
import errno
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftlab.networks import Network

HOW_TO = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "data.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"```yaml\n# (\S+)\n(.*?)```", HOW_TO, re.DOTALL))
COMMANDS = [line for block in re.findall(r"```console\n(.*?)```", HOW_TO, re.DOTALL) for line in block.splitlines()]
TOPICS = ("food", "travel", "music")
TEMPLATE = """{%- for message in messages %}{{- "<|" + message.role + "|>" + message.content + "<|end|>" }}{%- endfor %}
{%- if add_generation_prompt %}{{- "<|assistant|>" }}{%- endif %}"""


def write_reviews(path: Path, size: int = 300) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["review", "summary", "author", "topic"])
        writer.writeheader()
        for n in range(size):
            row = {"review": f"The guard of {n} is late", "summary": f"Late {n}", "topic": TOPICS[n % 3]}
            writer.writerow(row | {"author": f"author {n % 60}"})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_lines: Callable[[Path, list[Any]], Path]) -> Path:
    """The working directory with the files that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    write_reviews(tmp_path / "reviews.csv")
    for name, content in SNIPPETS.items():
        (tmp_path / name).write_text(content)
    function = re.search(r"```python\n(.*?)```", HOW_TO, re.DOTALL)
    assert function
    (tmp_path / "my_columns.py").write_text(function[1])
    monkeypatch.delitem(sys.modules, "my_columns", raising=False)
    (tmp_path / "my_template.jinja").write_text(TEMPLATE)
    (tmp_path / "notes.txt").write_text("\n\n".join(f"Note {n} of the guard at the bridge." for n in range(100)))
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ralf"}]
    chats = [
        [*turns, {"role": "user", "content": f"At {n}?"}, {"role": "assistant", "content": "No"}] for n in range(100)
    ]
    write_lines(tmp_path / "chats.jsonl", [{"messages": chat} for chat in chats])
    (tmp_path / "benchmark.csv").write_text("review,summary\nThe guard of 7 is late,Late\n")
    for split in ("train", "dev"):
        write_lines(
            tmp_path / "my_set" / f"{split}.jsonl", [{"prompt": f"{split} {n}", "completion": "b"} for n in range(9)]
        )
    return tmp_path


@pytest.fixture
def prepared(ftlab: Callable[..., Any], network: Network, place: Path) -> Callable[..., tuple[dict[str, Any], str]]:
    """Prepares; returns the card and what was printed."""

    def prepare(*words: object) -> tuple[dict[str, Any], str]:
        answer = ftlab("prepare", "--model.network.path", network.path, "--out", "out", *words)
        assert (answer.code, answer.err) == (0, "")
        return json.loads((place / "out/data_card.json").read_text()), answer.out

    return prepare


# What each snippet must come to, by hand: there are 300 reviews (100 a topic, 5 an author), 100 chats and 100 notes.
EXPECTED: dict[str, Callable[[dict[str, Any]], bool]] = {
    "reviews.yaml": lambda card: card["read"] == 300 and set(card["splits"]) == {"train", "validation", "test"},
    "chats.yaml": lambda card: card["read"] == 100 and card["chat_template"],
    "notes.yaml": lambda card: card["read"] == 100 and share(card) > 0.9,
    "by_function.yaml": lambda card: card["read"] == 300 and not card["dropped"],
    "mixed.yaml": lambda card: card["read"] == 400 and len(card["sources"]) == 2,
    "clean.yaml": lambda card: card["dropped"] == {"where": 100},
    "no_duplicates.yaml": lambda card: not card["dropped"],
    "splits.yaml": lambda card: all(size % 5 == 0 for size in records(card)),
    "leaks.yaml": lambda card: card["leaks"]["counts"]["prompt"] == 1 and card["dropped"] == {"leak": 1},
    "every_turn.yaml": lambda card: card["chat_template"],
    "short.yaml": lambda card: card["max_length"] == 48 and longest(card) <= 48,
    "packed.yaml": lambda card: card["layout"]["kind"] == "pack",
    "streamed.yaml": lambda card: set(card["splits"]) == {"validation"},
}


def share(card: dict[str, Any]) -> float:
    train = card["splits"]["train"]
    return train["supervised_tokens"] / train["tokens"]


def records(card: dict[str, Any]) -> list[int]:
    return [sizes["records"] for sizes in card["splits"].values()]


def longest(card: dict[str, Any]) -> int:
    return max(sizes["length_percentiles"]["100"] for sizes in card["splits"].values())


@pytest.mark.parametrize("name", sorted({*SNIPPETS, *EXPECTED}))
def test_a_snippet_of_the_page(name: str, prepared: Callable[..., tuple[dict[str, Any], str]]) -> None:
    card, _ = prepared("-c", name)
    assert EXPECTED[name](card), card


def test_every_yaml_of_the_page_is_a_snippet_with_a_name() -> None:
    assert HOW_TO.count("```yaml") == len(SNIPPETS)


def test_the_commands_of_the_page(place: Path, network: Network, ftlab: Callable[..., Any]) -> None:
    for command in COMMANDS:
        program, *words = shlex.split(command.replace("$NETWORK", network.path))
        assert program == "ftlab"
        quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"] if words[0] == "fit" else []
        assert ftlab(*words, *quiet).code == 0
    assert {command.split()[1] for command in COMMANDS} == {"prepare", "fit"}
    assert {file.name for file in Path("checked").iterdir()} == {
        "data_card.md", "data_card.json", "lengths.png", "dropped.jsonl", "leaks.jsonl",
    }  # fmt: skip
    assert list(Path("runs/reviews").glob("*/model/*.safetensors"))


def test_a_dataset_is_one_yaml_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Network, ftlab: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with Path("orders.csv").open("w") as file:
        file.write("question,reply\n" + "".join(f"Who cleans rope {n}?,Zeno cleans {n}.\n" for n in range(200)))
    config = {"data": {"path": "orders.csv", "prompt": "{question}\n", "response": "{reply}", "batch_size": 4}}
    Path("orders.yaml").write_text(yaml.safe_dump(config))
    own = ["-c", "orders.yaml", "--model.network.path", network.path]
    assert ftlab("prepare", *own).code == 0
    sizes = json.loads(Path("prepared/orders/data_card.json").read_text())["splits"]
    assert sum(split["records"] for split in sizes.values()) == 200
    short = ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert ftlab("fit", *own, "--model.method", "Full", *short, "--run.name", "two").code == 0
    assert json.loads(Path("runs/orders/two/provenance.json").read_text())["state"] == "finished"


def test_the_tables_fit_a_terminal_of_80_columns(prepared: Callable[..., tuple[dict[str, Any], str]]) -> None:
    _, out = prepared("-c", "mixed.yaml", "--show", "1")
    assert max(map(len, out.splitlines()[:-1])) <= 80  # the last names files
    assert "…" not in out  # nothing is cut off


def test_rows_are_shown_with_what_is_learned(prepared: Callable[..., tuple[dict[str, Any], str]]) -> None:
    _, out = prepared("-c", "reviews.yaml", "--data.template", "plain", "--data.splits.test", "0", "--show", "2")
    first, second = re.findall(r"^row \d.*?(?=^row|^prepared in)", out, re.DOTALL | re.MULTILINE)
    assert (first[:7], second[:7]) == ("row 0, ", "row 1, ")
    assert "The guard of 0 is late\n⟦Late 0<|end|>⟧" in first


def test_lists_of_an_earlier_preparation_do_not_stay(prepared: Callable[..., tuple[dict[str, Any], str]]) -> None:
    prepared("-c", "clean.yaml")
    assert len(Path("out/dropped.jsonl").read_text().splitlines()) == 100
    prepared("-c", "reviews.yaml", "--data.leaks.action", "ignore")
    assert Path("out/dropped.jsonl").read_text() == ""
    assert not Path("out/leaks.jsonl").exists()


def test_a_whole_experiment_is_taken_by_its_data(workplace: Path, ftlab: Callable[..., Any]) -> None:
    answer = ftlab("prepare", "-c", "tiny.yaml")
    assert answer.code == 0
    card = json.loads((workplace / "prepared/tiny/data_card.json").read_text())
    assert {split: sizes["records"] for split, sizes in card["splits"].items()} == {
        "train": 15,
        "validation": 5,
        "test": 4,
    }
    assert not Path("runs").exists()


def test_a_run_finds_the_rows_in_the_cache(workplace: Path, ftlab: Callable[..., Any]) -> None:
    ftlab("prepare", "-c", "tiny.yaml")
    card = json.loads(Path("prepared/tiny/data_card.json").read_text())
    assert ftlab("fit", "-c", "tiny.yaml", "--run.name", "a").code == 0
    assert (
        json.loads(Path("runs/tiny/a/provenance.json").read_text())["data"]["prepared"] == Path(card["prepared"]).name
    )


def test_a_template_is_found_beside_the_file_that_names_it(
    place: Path, network: Network, ftlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    words = ["--data.path", place / "chats.jsonl", "--model.network.path", network.path, "--out", "out"]
    assert ftlab("prepare", "-c", "../every_turn.yaml", *words).code == 0
    Path("every_turn.yaml").write_text((place / "every_turn.yaml").read_text())
    assert ftlab("prepare", "-c", "every_turn.yaml", *words).code == 1  # neither beside it nor here


def test_leaks_are_refused(place: Path, network: Network, refused: Callable[..., str], write_lines: Any) -> None:
    write_lines(place / "my_set/dev.jsonl", [{"prompt": "train 3", "completion": "b"}])
    sentence = refused("prepare", "--data.path", "my_set", "--model.network.path", network.path, "--out", "out")
    assert "1 of the 1 validation records are also found in training: dev.jsonl:1 in train.jsonl:4" in sentence
    assert "data.leaks.action" in sentence
    listed = re.search(r"listed in (\S+);", sentence)
    assert listed
    assert json.loads(Path(listed[1]).read_text())["evaluation"] == "dev.jsonl:1"
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"data": {"pth": "a"}}, "there is no key data.pth: did you mean data.path?"),
        ({"data": {"clean": {"unicod": "NFC"}}}, "there is no key data.clean.unicod: did you mean data.clean.unicode?"),
        ({"dta": {}}, "there is no key dta: did you mean data?"),
        ({"model": {"netwrk": {}}}, "there is no key model.netwrk: did you mean model.network?"),
        ({"model": {"network": {"pth": "a"}}}, "there is no key data.network.pth: did you mean data.network.path?"),
    ],
)
def test_an_unknown_key_is_refused(
    content: dict[str, Any], sentence: str, place: Path, refused: Callable[..., str]
) -> None:
    Path("wrong.yaml").write_text(yaml.safe_dump(content))
    assert refused("prepare", "-c", "wrong.yaml") == sentence


def test_what_matters_to_a_run_only_is_left_alone(prepared: Callable[..., tuple[dict[str, Any], str]]) -> None:
    config = {"trainer": {"max_steps": 3}, "model": {"method": {"class_path": "mypkg.Mine"}}, "run": {"name": "x"}}
    Path("more.yaml").write_text(yaml.safe_dump(config))
    card, _ = prepared("-c", "reviews.yaml", "-c", "more.yaml")
    assert card["read"] == 300


def test_odd_options_are_refused(place: Path, network: Network, refused: Callable[..., str]) -> None:
    own = ["prepare", "-c", "reviews.yaml", "--model.network.path", network.path]
    assert "show is -1" in refused(*own, "--show", "-1")
    assert "out: reviews.csv cannot be written to (File exists)" in refused(*own, "--out", "reviews.csv")


def test_a_card_is_written_whole_or_not_at_all(
    prepared: Callable[..., tuple[dict[str, Any], str]],
    network: Network,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    prepared("-c", "reviews.yaml")
    before = {file.name: file.read_bytes() for file in Path("out").iterdir()}
    own = ["prepare", "-c", "clean.yaml", "--model.network.path", network.path, "--out"]
    Path("taken/lengths.png").mkdir(parents=True)
    assert "taken cannot be written to (lengths.png is a directory)" in refused(*own, "taken")
    assert [file.name for file in Path("taken").iterdir()] == ["lengths.png"]
    monkeypatch.setattr("ftlab.cli.prepare.histogram", full_disk)
    assert "out: out cannot be written to (No space left on device); " in refused(*own, "out")
    assert {file.name: file.read_bytes() for file in Path("out").iterdir()} == before


def test_the_help_says_what_is_written(ftlab: Callable[..., Any]) -> None:
    out = ftlab("prepare", "--help").out
    for name in (
        "--show",
        "--out",
        "data_card.md",
        "lengths.png",
        "dropped.jsonl",
        "--data.clean.where",
        "--data.leaks.action",
    ):
        assert name in out
