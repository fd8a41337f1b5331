"""Scripts are imported as they import each other: from their directory."""

from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of scripts, on the path."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return SCRIPTS
