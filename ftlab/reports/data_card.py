"""A prepared dataset as people read it: what was read, dropped, found twice, leaked, split, and how long it is.

`data_card` gathers plain data; the others show it: as tables on a terminal, as Markdown, as a histogram.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
from rich.table import Table
from rich.text import Text

from ftlab.data import FinetuneData
from ftlab.data.layout import padding_waste
from ftlab.data.records import SPLITS, Split

PERCENTILES = (5, 25, 50, 75, 95, 99, 100)
LEFT, RIGHT = "⟦", "⟧"  # what is learned, also where there are no colours


def data_card(data: FinetuneData) -> dict[str, Any]:
    """Everything that is known of a prepared dataset, as plain data.

    Lengths are in tokens; waste is the share of positions in the batches of one epoch that are padding.
    """
    report = data.prepared.report
    card: dict[str, Any] = {
        "name": data.corpus.name,
        "prepared": str(data.prepared.directory),
        "network": data.network.path,
        "chat_template": data.encoder.chat,
        "max_length": data.encoder.max_length,
        **report,
        "splits": {split: _lengths(data, split) for split in SPLITS if data.prepared.size(split)},
    }
    if data.prepared.size("train"):
        card["layout"] = {"kind": data.layout.kind, "why": data.layout.why}
        card["padding_waste"] = {kind: round(waste, 4) for kind, waste in _wastes(data).items()}
    return card


def _lengths(data: FinetuneData, split: Split) -> dict[str, Any]:
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
    lengths = data.rows("train").lengths
    capacity = data.encoder.max_length or int(lengths.max())
    return {kind: padding_waste(lengths, kind, data.batch_size, data.batch_tokens, capacity, data.seed) for kind in
            ("pad", "bucket", "pack")}  # fmt: skip


def tables(card: dict[str, Any]) -> Iterator[Table]:
    """The card as tables for a terminal."""
    for title, header, rows in _sections(card):
        table = Table(title=title, title_justify="left", title_style="bold")
        for column in header:
            table.add_column(column, justify="left" if column == header[0] else "right")
        for row in rows:
            table.add_row(*row)
        yield table


def markdown(card: dict[str, Any]) -> str:
    """The card as a page."""
    lines = [f"# Data: {card['name']}", ""]
    if "layout" in card:
        lines += [f"Batches: {card['layout']['kind']}: {card['layout']['why']}", ""]
    for title, header, rows in _sections(card):
        lines += [f"## {title}", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines += [""]
    return "\n".join(lines)


def _sections(card: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Titles, headers and cells, the same for every form."""
    files = [[name, f"{source['format']}", f"{source['read']:,}"] for name, source in card["sources"].items()]
    yield "Read", ["file", "format", "records"], files
    if card["dropped"]:
        yield "Left out", ["rule", "records"], [[rule, f"{count:,}"] for rule, count in card["dropped"].items()]
    if card["leaks"]:
        rows = [[kind, f"{count:,}"] for kind, count in card["leaks"]["counts"].items()]
        yield "Evaluation records found in training", ["kind", "records"], rows
    header = ["split", "records", "rows", "tokens", "learned", "mean", *(f"p{p}" for p in PERCENTILES[:-1]), "longest"]
    rows = []
    for split, sizes in card["splits"].items():
        figures = [sizes[name] for name in ("records", "rows", "tokens", "supervised_tokens")]
        lengths = list(sizes["length_percentiles"].values())
        rows.append([split, *(f"{n:,}" for n in figures), f"{sizes['mean_length']:,}", *(f"{n:,}" for n in lengths)])
    yield "Splits, lengths in tokens", header, rows
    total = sum(sizes["rows"] for sizes in card["splits"].values())
    rest = [
        ["records whose text was mended", f"{card['mended']:,}"],
        ["truncated", f"{card['truncated']:,} ({card['truncated'] / max(1, total):.2%})"],
    ]
    rest += [[f"padding of {kind}", f"{waste:.1%}"] for kind, waste in card.get("padding_waste", {}).items()]
    yield "Rows", ["", ""], rest


def histogram(data: FinetuneData, path: Path) -> None:
    """Draws how many rows of each split have which length, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    lengths = {split: data.prepared.rows(split).lengths for split in SPLITS if data.prepared.size(split)}
    edges = numpy.histogram_bin_edges(numpy.concatenate(list(lengths.values())), bins=60)
    for split, values in lengths.items():
        axes.hist(
            values, bins=edges.tolist(), histtype="stepfilled", alpha=0.5, label=f"{split} ({len(values):,} rows)"
        )
    if data.encoder.max_length and data.encoder.max_length <= 2 * edges[-1]:
        axes.axvline(data.encoder.max_length, color="black", linestyle="--", label="max_length")
    axes.set(xlabel="tokens of a row", ylabel="rows", title=data.corpus.name, yscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def shown(data: FinetuneData, count: int) -> Iterator[Text]:
    """The first training rows as the network sees them, what is learned in colour and in ⟦brackets⟧."""
    rows, tokenizer = data.rows("train"), data.network.tokenizer()
    for index in range(min(count, len(rows))):
        row = rows[index]
        text = Text(f"row {index}, {len(row.input_ids)} tokens: ", style="bold")
        end = 0
        for start, stop in [*row.spans.tolist(), (len(row.input_ids), None)]:
            text.append(str(tokenizer.decode(row.input_ids[end:start].tolist())), style="not bold dim")
            if stop is not None:
                learned = tokenizer.decode(row.input_ids[start:stop].tolist())
                text.append(f"{LEFT}{learned}{RIGHT}", style="not bold green")
                end = stop
        yield text
