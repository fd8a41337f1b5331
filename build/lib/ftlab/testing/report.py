"""What the suite found: for every check one outcome, and for every failure one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["passed", "failed", "refused", "not tried"]


class Broken(AssertionError):  # noqa: N818  (all three are outcomes, and read as such)
    """A promise that a method does not keep: one sentence that says what broke, and what to do."""


class Refused(Exception):  # noqa: N818
    """The method, or training with it, says in one sentence that it does not do this."""


class NotTried(Exception):  # noqa: N818
    """Why a check was left out."""


@dataclass(frozen=True)
class Outcome:
    """How a check ended.

    Args:
        check: Its name.
        base: The base it was tried on: "full", or a kind of `Quantization`.
        status: How it ended.
        remark: The sentence of a failure, the reason of a refusal or of what was not tried, what was measured.
    """

    check: str
    base: str
    status: Status
    remark: str = ""

    def __str__(self) -> str:
        return f"{self.check}{'' if self.base == 'full' else f' ({self.base})'}: {self.remark or self.status}"


@dataclass(frozen=True)
class Report:
    """Every check of a method on every base that was asked for, in the order in which they ran."""

    method: str
    outcomes: tuple[Outcome, ...]

    @property
    def failures(self) -> list[Outcome]:
        """The outcomes that failed."""
        return [outcome for outcome in self.outcomes if outcome.status == "failed"]

    def raise_failures(self) -> None:
        """Raises Broken with the sentences of all failures, a line each, where there are any."""
        if self.failures:
            raise Broken("\n".join([f"{self.method} breaks what ftlab relies on:", *map(str, self.failures)]))
