"""Pages of HTML, filled in by jinja2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2


def filled(template: Path, **values: Any) -> str:
    """A template with values in it, which may include others that lie beside it. Texts are escaped, and a name that has
    no value is an error."""
    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return engine.get_template(template.name).render(**values)
