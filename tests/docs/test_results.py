"""What the README says of results, held against docs/results."""

from __future__ import annotations

import sys

from pages import ROOT

sys.path.append(str(ROOT / "scripts" / "site"))
import figures


def test_the_readme_has_the_study_as_it_was_measured() -> None:
    assert figures.study(ROOT / "docs" / "results") in (ROOT / "README.md").read_text(encoding="utf-8")
