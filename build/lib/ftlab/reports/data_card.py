"""A prepared dataset as people read it: what was read, dropped, found twice, leaked, split, and how long it is.

`data_card` gathers plain data; the others show it: as tables on a terminal, as Markdown, as a histogram.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ftlab.data import FinetuneData
from ftlab.data.collators import Row
from ftlab.data.layout import Layout, padding_waste
from ftlab.data.records import SPLITS, Split
from ftlab.data.training import RowTraining

PERCENTILES = (5, 25, 50, 75, 95, 99, 100)
LEFT, RIGHT = "⟦", "⟧"  # what is learned, also where there are no colours
_BARS = 60  # about as many in the histogram
_SHOWN = 500  # characters that are shown of both ends of a long stretch


@dataclass(frozen=True)
class _Section:
    """One table: its title, the names of its columns, and its cells; `texts` columns from the left hold no numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]
    texts: int = 1


def data_card(data: FinetuneData) -> dict[str, Any]:
    """Everything that is known of a dataset, as plain data; prepares it where it is not in the cache.

    Lengths are in tokens; waste is the share of positions in the batches of one epoch that are padding; seconds are
    those of the preparation, or of finding it in the cache.
    """
    started = time.perf_counter()
    report = data.prepared.report
    seconds = time.perf_counter() - started
    card: dict[str, Any] = {
        "name": data.corpus.name,
        "prepared": str(data.prepared.directory),
        "seconds": round(seconds, 2),
        "network": data.network.path,
        "chat_template": data.encoder.chat,
        "max_length": data.encoder.max_length,
        **report,
        "splits": {split: _sizes(data, split) for split in SPLITS if data.prepared.size(split)},
    }
    if data.prepared.size("train"):
        card["layout"] = {"kind": data.layout.kind, "why": data.layout.why}
        card["padding_waste"] = {kind: round(waste, 4) for kind, waste in _wastes(data).items()}
    return card


def _sizes(data: FinetuneData, split: Split) -> dict[str, Any]:
    rows = data.prepared.rows(split)
    lengths = rows.lengths
    return {
        "records": len(numpy.unique(rows.records)),
        "rows": len(rows),
        "tokens": int(lengths.sum()),
        "supervised_tokens": int(rows.targets.sum()),
        "mean_length": round(float(lengths.mean()), 1),
        "length_percentiles": {
            # the length that this share of rows does not exceed
            str(p): int(value)
            for p, value in zip(PERCENTILES, numpy.percentile(lengths, PERCENTILES, method="inverted_cdf"), strict=True)
        },
    }


def _wastes(data: FinetuneData) -> dict[str, float]:
    training = data.training
    assert isinstance(training, RowTraining)  # of a stream nothing is known beforehand
    sizes = (data.batch_size, data.batch_tokens, training.capacity, data.seed)
    kinds: tuple[Layout, ...] = ("pad", "bucket", "pack")
    return {kind: padding_waste(training.lengths, kind, *sizes) for kind in kinds}


def tables(card: dict[str, Any]) -> Iterator[Group]:
    """The card as titled tables for a terminal of 80 columns."""
    for section in _sections(card):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
        for number, column in enumerate(section.header):
            text = number < section.texts
            table.add_column(column, justify="left" if text else "right", overflow="fold", no_wrap=not text)
        for row in section.rows:
            table.add_row(*map(Text, row))
        yield Group(Text(section.title, style="bold"), table, Text())


def markdown(card: dict[str, Any]) -> str:
    """The card as a page."""
    lines = [f"# Data: {card['name']}", ""]
    if "layout" in card:
        lines += [f"Batches: {card['layout']['kind']}: {card['layout']['why']}", ""]
    for section in _sections(card):
        rules = ["---" if number < section.texts else "---:" for number in range(len(section.header))]
        lines += [f"## {section.title}", "", _line(section.header), _line(rules), *map(_line, section.rows), ""]
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _sections(card: dict[str, Any]) -> Iterator[_Section]:
    """The tables, the same for every form."""
    files = [[name, source["format"], f"{source['read']:,}"] for name, source in card["sources"].items()]
    yield _Section("Read", ["file", "format", "records"], files, texts=2)
    if card["dropped"]:
        rows = [[rule, f"{count:,}"] for rule, count in card["dropped"].items()]
        yield _Section(f"Left out, of {card['read']:,}", ["rule", "records"], rows)
    if card["leaks"]:
        evaluated = sum(card["leaks"]["evaluated"].values())
        rows = [[kind, f"{count:,}"] for kind, count in card["leaks"]["counts"].items()]
        yield _Section(f"Found in training, of {evaluated:,} evaluation records", ["kind", "records"], rows)
    splits = card["splits"]
    rows = []
    for split, sizes in splits.items():
        counts = [f"{sizes[name]:,}" for name in ("records", "rows", "tokens", "supervised_tokens")]
        rows.append([split, *counts, f"{sizes['supervised_tokens'] / sizes['tokens']:.1%}"])
    yield _Section("Splits", ["split", "records", "rows", "tokens", "learned", "share"], rows)
    rows = [
        [split, f"{sizes['mean_length']:,}", *(f"{length:,}" for length in sizes["length_percentiles"].values())]
        for split, sizes in splits.items()
    ]
    percentiles = [f"p{p}" for p in PERCENTILES[:-1]]
    yield _Section("Tokens of a row", ["split", "mean", *percentiles, "longest"], rows)
    stops = card["stops"]
    total = sum(sizes["rows"] for sizes in splits.values())
    rows = [
        ["records whose text was mended", f"{card['mended']:,}"],
        ["training answers that end in a stop token", f"{stops['stopped']:,} of {stops['answers']:,}"],
        ["answers left out of records with others", f"{card['answers_dropped']:,}"],
        ["rows cut to max_length", f"{card['truncated']:,} ({card['truncated'] / max(1, total):.1%})"],
        *([f"padding with {kind}", f"{waste:.1%}"] for kind, waste in card.get("padding_waste", {}).items()),
    ]
    yield _Section("Rows and batches", ["what", "how much"], rows)


def histogram(data: FinetuneData, path: Path) -> None:
    """Draws how many rows of each split have which length, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    lengths = {split: data.prepared.rows(split).lengths for split in SPLITS if data.prepared.size(split)}
    longest = max(int(values.max()) for values in lengths.values())
    edges = numpy.arange(0, longest + 1 + (step := longest // _BARS + 1), step)  # whole numbers fall evenly into these
    for split, values in lengths.items():
        axes.hist(values, bins=edges.tolist(), histtype="step", label=f"{split} ({len(values):,} rows)")
    if data.encoder.max_length and data.encoder.max_length <= 2 * edges[-1]:
        axes.axvline(data.encoder.max_length, color="black", linestyle="--", label="max_length")
    axes.set(xlabel="tokens of a row", ylabel="rows", title=data.corpus.name, yscale="log", ylim=(0.5, None))
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def shown(data: FinetuneData, count: int) -> Iterator[Text]:
    """The first training rows as the network sees them, what is learned in colour and in ⟦brackets⟧.

    Of a stretch of more than 1,000 characters both ends are shown.
    """
    if not data.prepared.size("train"):
        return
    rows, tokenizer = data.rows("train"), data.network.tokenizer()
    for index in range(min(count, len(rows))):
        row = rows[index]
        yield _shown(row, f"row {index}", tokenizer)
        if row.rejected is not None:
            yield _shown(row.rejected, f"row {index} with the worse answer", tokenizer)


def _shown(row: Row, name: str, tokenizer: PreTrainedTokenizerBase) -> Text:
    def decode(ids: Any) -> str:
        return str(tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False))

    ids, spans = numpy.asarray(row.input_ids), numpy.asarray(row.spans).tolist()
    learned = sum(stop - start for start, stop in spans)
    text = Text(f"{name}, {len(ids)} tokens, {learned} learned: ", style="bold")
    before = ""
    for start, stop in [*spans, (len(ids), len(ids))]:
        # what more tokens add to the text: a token alone would lose the space that it begins with
        given, whole = decode(ids[:start]), decode(ids[:stop])
        text.append(_shortened(given[len(before) :]), style="not bold dim")
        if start < stop:
            text.append(f"{LEFT}{_shortened(whole[len(given) :])}{RIGHT}", style="not bold green")
        before = whole
    return text


def _shortened(text: str) -> str:
    left_out = len(text) - 2 * _SHOWN
    return text if left_out <= 0 else f"{text[:_SHOWN]} … {left_out:,} characters … {text[-_SHOWN:]}"
