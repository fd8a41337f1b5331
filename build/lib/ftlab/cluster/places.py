"""Where templates and profiles lie: in slurm/ of the working directory, then beside ftlab.

What ships lies in slurm/ at the top of the checkout; ftlab/cluster/shipped is a link to it, which an installed package
holds as a copy. A file of the working directory stands in for the one of the same name that ships, each by itself.
"""

from __future__ import annotations

from pathlib import Path

_SHIPPED = Path(__file__).parent / "shipped"


def places() -> list[Path]:
    """The directories, the first first."""
    return [Path("slurm"), _SHIPPED]


def find(name: str) -> Path | None:
    """A file by its path under slurm/; None where there is none."""
    return next((place / name for place in places() if (place / name).is_file()), None)


def profiles() -> list[str]:
    """The names of all profiles."""
    return sorted({file.stem for place in places() for file in (place / "profiles").glob("*.yaml")})
