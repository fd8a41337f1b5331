"""How far a long work is, its rate and the time that is left: on standard error, where that is a terminal."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import ExitStack
from typing import ClassVar

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.filesize import decimal
from rich.progress import BarColumn, ProgressColumn, Task
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

from ftlab.console import clock, draws_bars, new_console
from ftlab.printed_above import printed_above

_SOON = 1.0
"""Seconds of a work in which nothing is drawn."""
_AGAIN = 0.1
"""Seconds between two drawings."""
_FREE = 3
"""Columns at the end of a line."""


class Progress:
    """A bar that is drawn from the second second on and gone at the end; of a work within another nothing is drawn.

    Args:
        what: Is done, such as "preparing reviews".
        unit: What is counted; "bytes" are shown as kB, MB and GB.
        total: How many there will be; None while nobody knows.
        done: How many were there before: the rate is that of the others.
        forks: Whether processes are forked meanwhile. No thread draws then, and the bar moves with `advance` alone.
        shown: False where results are printed on the same terminal meanwhile.
        prints: Whether sentences are printed on standard error meanwhile, while no thread draws: they come to stand
            above the bar.
    """

    _open: ClassVar[bool] = False

    def __init__(
        self,
        what: str,
        unit: str,
        total: float | None = None,
        done: int = 0,
        forks: bool = False,
        shown: bool = True,
        prints: bool = False,
    ) -> None:
        console = new_console(sys.stderr)  # the stream of now: others may put another in its place for a while
        self._shown = shown and draws_bars(sys.stderr) and not Progress._open
        self._bar = _Line(
            _Words(),
            BarColumn(bar_width=None),  # what words and numbers leave of the line
            _Count(unit, done),
            console=console,
            expand=True,
            transient=True,
            auto_refresh=not forks,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._prints, self._drawing = prints, ExitStack()
        self._task = self._bar.add_task(what, total=total, completed=done)
        self._forks, self._begun, self._drawn = forks, time.monotonic(), 0.0
        self._timer = threading.Timer(_SOON, self._bar.start)

    def __enter__(self) -> Progress:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """The work begins."""
        if self._shown:
            Progress._open = True
            if not self._forks:
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """It has ended, or an error has ended it."""
        if not self._shown:
            return
        Progress._open = False
        if not self._forks:
            self._timer.cancel()
            self._timer.join()
        if self._bar.live.is_started:
            self._bar.stop()
        self._drawing.close()

    def due(self) -> bool:
        """Whether `advance` would draw the bar now, where no thread does: sooner nobody need look how far it is."""
        last = max(self._begun + _SOON - _AGAIN, self._drawn)
        return self._shown and self._forks and time.monotonic() - last >= _AGAIN

    def say(self, what: str) -> None:
        """What is done from now on."""
        if self._shown:
            self._bar.update(self._task, description=what, refresh=not self._forks)

    def expect(self, total: float | None) -> None:
        """How many there will be, as far as is known by now."""
        if self._shown:
            self._bar.tasks[0].total = total  # `update` takes no None

    def advance(self, more: float = 1) -> None:
        """So many more are done; none where it is to be drawn anew."""
        if not self._shown:
            return
        at = time.monotonic() if more else self._bar.tasks[0].fields.get("at")
        self._bar.update(self._task, advance=more, at=at)
        if self.due():
            if not self._bar.live.is_started and self._prints:
                self._drawing.enter_context(printed_above(self._bar.console))
            self._bar.start()
            self._bar.refresh()
            self._drawn = time.monotonic()


class _Line(Bar):
    """A bar beside which some columns stay free."""

    def get_renderable(self) -> RenderableType:
        return _Narrower(super().get_renderable())


class _Narrower:
    """A terminal shows the ^C that is typed: after a full line it would begin the next one, and that alone would be
    cleared at the end."""

    def __init__(self, bar: RenderableType) -> None:
        self._bar = bar

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(self._bar, options.update_width(max(1, options.max_width - _FREE)))


class _Words(ProgressColumn):
    """What is done; cut where the line is short, of which the numbers need their part."""

    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class _Count(ProgressColumn):
    """How many of how many, how many a second since the beginning, and the time that the others take at that rate."""

    def __init__(self, unit: str, before: float) -> None:
        super().__init__(Column(no_wrap=True))
        self._unit, self._before = unit, before

    def render(self, task: Task) -> Text:
        of = "" if task.total is None else f"/{self._amount(task.total)}"
        said = f"{self._amount(task.completed)}{of}" + ("" if self._unit == "bytes" else f" {self._unit}")
        done, at = task.completed - self._before, task.fields.get("at")
        if not done or at is None or task.start_time is None:
            return Text(said)
        rate = done / max(at - task.start_time, 1e-9)
        said += f"  {self._rate(rate)}/s"
        if task.total is not None:
            # from the last one that was done: between two that take long the time runs down
            left = (task.total - task.completed) / rate - (time.monotonic() - at)
            said += f"  {clock(max(0.0, left))} left"
        return Text(said)

    def _amount(self, number: float) -> str:
        return decimal(int(number)) if self._unit == "bytes" else f"{number:,.0f}"

    def _rate(self, number: float) -> str:
        if self._unit == "bytes":
            return decimal(int(number))
        return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
