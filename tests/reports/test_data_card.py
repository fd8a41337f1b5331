"""The data card: its figures against a tokenizer used directly, its tables, its histogram, its rows."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy
import pytest
from rich.console import Console

from ftlab.data import FinetuneData
from ftlab.data.assignment import Splits
from ftlab.networks import Network
from ftlab.reports.data_card import data_card, histogram, markdown, shown, tables

MakeData = Callable[..., FinetuneData]


@pytest.fixture
def lengths(network: Network, data_path: str) -> dict[str, list[tuple[int, int]]]:
    """Of every record: its tokens, and those of the answer with its stop; of each file, by the tokenizer alone."""
    tokenizer = network.tokenizer()

    def sizes(line: str) -> tuple[int, int]:
        row = json.loads(line)
        prompt, answer = (
            tokenizer(row[side], add_special_tokens=False)["input_ids"] for side in ("prompt", "completion")
        )
        return len(tokenizer("")["input_ids"]) + len(prompt) + len(answer) + 1, len(answer) + 1

    return {file.stem: [sizes(line) for line in file.read_text().splitlines()] for file in Path(data_path).iterdir()}


def test_the_figures_are_the_tokenizers(make_data: MakeData, lengths: dict[str, list[tuple[int, int]]]) -> None:
    card = data_card(make_data())
    for split, file in {"train": "train", "validation": "dev", "test": "test"}.items():
        whole, learned = numpy.array(lengths[file]).T
        sizes = card["splits"][split]
        assert sizes["records"] == sizes["rows"] == len(whole)
        assert sizes["tokens"] == whole.sum()
        assert sizes["supervised_tokens"] == learned.sum()
        assert sizes["mean_length"] == pytest.approx(whole.mean(), abs=0.05)
        assert sizes["length_percentiles"]["100"] == whole.max()
        # the least length that half of the rows do not exceed
        assert sizes["length_percentiles"]["50"] == sorted(whole)[-(-len(whole) // 2) - 1]
    assert card["read"] == 24
    assert card["max_length"] == 128


def test_waste_is_that_of_a_training_batch(make_data: MakeData, lengths: dict[str, list[tuple[int, int]]]) -> None:
    waste = data_card(make_data(batch_size=15))["padding_waste"]
    whole = [length for length, _ in lengths["train"]]
    assert waste["pad"] == pytest.approx(1 - sum(whole) / (15 * max(whole)), abs=1e-4)  # one batch holds them all
    assert set(waste) == {"pad", "bucket", "pack"}


def test_a_set_without_training_records_has_no_batches(make_data: MakeData, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    card = data_card(make_data(path=str(tmp_path)))
    assert list(card["splits"]) == ["test"]
    assert "layout" not in card
    assert list(tables(card))
    assert list(shown(make_data(path=str(tmp_path)), 1)) == []


def test_the_page_and_the_tables(make_data: MakeData, tmp_path: Path) -> None:
    (tmp_path / "a|b [c]").mkdir()
    rows = "".join(json.dumps({"prompt": f"Zeno {n % 90}", "completion": "Ralf"}) + "\n" for n in range(100))
    (tmp_path / "a|b [c]" / "train.jsonl").write_text(rows)
    card = data_card(make_data(path=str(tmp_path / "a|b [c]"), splits=Splits(0.25)))
    page = markdown(card)
    assert "## Left out, of 100\n\n| rule | records |\n| --- | ---: |\n| exact_duplicate | 10 |\n" in page
    assert "/a\\|b [c] (train) |" in page
    train = card["splits"]["train"]
    assert (
        f"| train | {train['records']} | {train['rows']} | {train['tokens']} | {train['supervised_tokens']} | " in page
    )
    console = Console(width=80, record=True, file=io.StringIO())
    for table in tables(card):
        console.print(table)
    printed = console.export_text()
    assert max(map(len, printed.splitlines())) <= 80
    assert "[c]" in printed  # which rich would take for markup
    titles = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert [line for line in printed.splitlines() if line in titles] == titles


def test_the_histogram_is_a_picture(make_data: MakeData, tmp_path: Path) -> None:
    histogram(make_data(), tmp_path / "lengths.png")
    assert matplotlib.image.imread(tmp_path / "lengths.png").shape[:2] == (480, 960)


def test_rows_are_shown_as_the_network_sees_them(make_data: MakeData, tmp_path: Path) -> None:
    rows = [{"prompt": f"{word}? ", "chosen": " At the bridge", "rejected": " No"} for word in ("Where", "Who", "When")]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = make_data(path=str(tmp_path), splits=Splits(0))
    texts = [text.plain for text in shown(data, 2)]
    # <|bos|> Where ? Ġ ⟦ĠAt Ġthe Ġbridge <|end|>⟧
    assert texts[0] == "row 0, 8 tokens, 4 learned: <|bos|>Where? ⟦ At the bridge<|end|>⟧"
    assert texts[1].endswith("<|bos|>Where? ⟦ No<|end|>⟧")
    assert texts[1].startswith("row 0 with the worse answer, ")
    assert [text.split(",")[0] for text in texts[2:]] == ["row 1", "row 1 with the worse answer"]


def test_of_long_texts_both_ends_are_shown(
    make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Network, "context_length", lambda _: None)
    rows = [{"prompt": f"{'a' * 995}b", "completion": "c"}, {"prompt": "a" * 2000, "completion": "d"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    short, long = (text.plain for text in shown(make_data(path=str(tmp_path), splits=Splits(0)), 2))
    # <|bos|> is 7 characters, so the first stretch has 1,003 of them, and the second 2,007
    assert f"<|bos|>{'a' * 493} … 3 characters … {'a' * 499}b⟦c<|end|>⟧" in short
    assert f"<|bos|>{'a' * 493} … 1,007 characters … {'a' * 500}⟦d<|end|>⟧" in long
