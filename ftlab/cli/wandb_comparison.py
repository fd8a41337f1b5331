"""A comparison as a W&B run of its own: its tables, its figures and its page."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from ftlab.cli.wandb import JOURNAL, settled_mode
from ftlab.errors import UserError, one_line
from ftlab.reports.compare import Comparison, Group
from ftlab.reports.compare.page import page
from ftlab.reports.compare.plots import figures
from ftlab.reports.compare.tables import numbers, sentences, tables


def refuse_disabled() -> None:
    """To be called before anything is written.

    Raises:
        UserError: The environment turns W&B off.
    """
    if os.environ.get("WANDB_MODE") == "disabled":
        raise UserError("--wandb: WANDB_MODE is disabled, so that nothing would be logged: unset it")


def tell_comparison(project: str, comparison: Comparison, groups: Sequence[Group]) -> None:
    """Logs `comparison`, a table of every number in full; `quality`, `difference` and `cost` as they are printed; each
    figure as an image, and the page.

    Args:
        project: Of W&B; offline, into wandb/ of the working directory, where nobody is logged in.
        comparison: What came of comparing.
        groups: Its methods.

    Raises:
        UserError: W&B took not all of it.
    """
    import wandb

    mode = settled_mode("auto", Path("wandb"))
    # made before anything is logged: what fails here is no fault of a server or a disk
    in_full, shown, words = numbers(comparison), tables(comparison), sentences(comparison)
    drawn = {name: _image(figure) for name, figure in figures(comparison, groups).items()}
    html = page(comparison, groups)
    try:
        session = wandb.init(
            mode=mode,  # type: ignore[arg-type]
            dir=Path.cwd(),  # W&B's own process may have been started elsewhere
            project=project,
            name=f"{comparison.metric}: {', '.join(row.name for row in comparison.rows)}"[:128],
            job_type="compare",
            notes="\n".join(words),
            config={
                "metric": comparison.metric,
                "baseline": comparison.baseline,
                "runs": {row.name: list(row.runs) for row in comparison.rows},
            },
            settings=wandb.Settings(**JOURNAL),
        )
        try:
            session.log(
                {"comparison": _in_full(in_full)}
                | {each.title: wandb.Table(list(each.header), [list(row) for row in each.rows]) for each in shown}
                | {name: wandb.Image(image) for name, image in drawn.items()}
                | {"page": wandb.Html(html, inject=False)}
            )
        finally:
            session.finish()
    except Exception as error:  # of a server, or of a disk
        raise UserError(f"--wandb {project}: W&B has not been told all of it ({one_line(error)})") from error
    print(f"ftlab: logged to W&B's project {project} ({mode})", file=sys.stderr)


def _in_full(lines: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    return wandb.Table(list(lines[0]), [[_plain(value) for value in line.values()] for line in lines])


def _plain(value: Any) -> Any:
    """W&B's tables hold no infinite number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _image(figure: Any) -> Any:
    from PIL import Image

    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=200)
    return Image.open(drawn)
