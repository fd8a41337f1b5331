"""What `mkdocs build` makes of the program itself: pages of verbs, keys and Python, figures out of docs/results."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import figures
import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from ftlab.cli import quiet

ROOT = Path(__file__).parents[2]
_FIGURES = re.compile(r"^<!-- figures: (\w+) -->$", re.MULTILINE)
_OUTSIDE = {"../../slurm/README.md": "slurm-profiles.md", "../docs/how-to/slurm.md": "slurm.md"}
"""Links between docs/ and files beside it, and what the site has in their place."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the pages of Python to the navigation, under the reference."""
    quiet.silence()
    warnings.filterwarnings("ignore", ".*torch.jit.script_method.*")  # torch's own, and mkdocs shows what there is
    assert config.nav is not None
    section = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    section.append({"Python": [{part: f"reference/python/{part}.md"} for part in reference.PARTS]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is made anew at every build."""
    schema = reference.schema()
    pages = {
        "how-to/slurm-profiles.md": (ROOT / "slurm/README.md").read_text(encoding="utf-8"),
        "reference/verbs.md": reference.verbs(),
        "reference/configuration.md": reference.configuration(schema),
        "reference/experiment.schema.json": json.dumps(schema, ensure_ascii=False),
        **{f"reference/python/{part}.md": reference.python(part, ROOT) for part in reference.PARTS},
    }
    for place, content in pages.items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Puts figures where a page asks for them, and has links that lead out of docs/ lead to the site's pages."""
    for outside, inside in _OUTSIDE.items():
        markdown = markdown.replace(f"]({outside})", f"]({inside})")
    return _FIGURES.sub(lambda found: figures.FIGURES[found[1]](ROOT / "docs/results"), markdown)
