"""Faults done to real runs, and what became of the runs: killed, torn, starved, and set going again.

    python scripts/chaos.py [--kills 200] [--only FAULT …] [--output docs/results/chaos.md]

Each run is the demo's LoRA with dropout on 12 records, 40 steps in seven epochs, a checkpoint and a line of the
curves at every step. It is stopped by the fault, the fault is mended, and the same command is given until it comes to
its end. What it leaves is compared with what an undisturbed run left: the files of `model/`, and the curves but for
times and memory. A bit that differs is a bit lost; a run that does not end, or a fault that is not said in one
sentence, is one that was not survived.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from chaos_faults import FAULTS, NotHere, Result
from chaos_runs import FAULTY, Command, bits_apart, import_all, left, words
from rich.console import Console
from rich.table import Table
from rich.text import Text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="kill -9 at so many random moments; other faults: fewer")
    parser.add_argument("--only", nargs="+", metavar="FAULT", help=", ".join(f"'{name}'" for name in FAULTS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path, help="file for the table")
    options = parser.parse_args()
    unknown = set(options.only or ()) - set(FAULTS)
    if unknown:
        parser.error(f"there is no fault {unknown.pop()!r}")
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    import_all()
    with tempfile.TemporaryDirectory() as place:
        chaos = Chaos(Path(place), random.Random(options.seed), options.kills)
        for name in options.only or FAULTS:
            chaos.attempt(name)
    Console(width=200).print(chaos.table())
    if options.output:
        options.output.write_text(chaos.page(shlex.join(sys.argv[1:])), encoding="utf-8")
    sys.exit(any(result.survived < result.tried or result.bits_lost for result in chaos.results.values()))


@dataclass
class Chaos:
    """Faults in turn.

    Args:
        place: Where runs lie.
        dice: Choose the moments.
        kills: At so many random moments.
    """

    place: Path
    dice: random.Random
    kills: int
    results: dict[str, Result] = field(default_factory=dict)
    _places: int = 0
    _whole: dict[tuple[str, ...], dict[str, bytes]] = field(default_factory=dict)
    seconds: float = 0.0
    """What an undisturbed run takes."""

    def attempt(self, name: str) -> None:
        """Tries one kind of fault as often as it is worth."""
        result = self.results[name] = Result()
        try:
            FAULTS[name](self, result)
        except NotHere as error:
            result.not_tried = str(error)
        print(
            f"{name}: {result.survived} of {result.tried} survived, {result.bits_lost} bits lost {result.said}",
            flush=True,
        )

    def new_place(self, parent: Path | None = None) -> Path:
        """A working directory, with its data cache."""
        self._places += 1
        place = (parent or self.place) / str(self._places)
        place.mkdir(parents=True)
        (place / "faulty.py").write_text(FAULTY)
        return place

    def fit(self, place: Path, *options: str, **how: object) -> Command:
        """The command that trains there."""
        return Command(place, words("fit", *options), **how)  # type: ignore[arg-type]

    def to_the_end(self, place: Path, *options: str, fresh: bool = False) -> bool:
        """Gives the command once more; says whether it came to its end."""
        return self.fit(place, *options, fresh=fresh).wait() == 0

    def whole(self, *options: str, fresh: bool = False) -> dict[str, bytes]:
        """What an undisturbed run leaves."""
        if options not in self._whole:
            place, began = self.new_place(), time.perf_counter()
            command = self.fit(place, *options, fresh=fresh)
            if command.wait() != 0:
                raise SystemExit(f"an undisturbed run does not come to its end: {command.said.read_text()}")
            self.seconds = self.seconds or time.perf_counter() - began
            self._whole[options] = left(place)
        return self._whole[options]

    def judge(self, result: Result, place: Path, tried: int, good: bool, *options: str, fresh: bool = False) -> None:
        """Has the run come to its end and compares what it leaves."""
        result.tried += tried
        ended = self.to_the_end(place, *options, fresh=fresh)
        lost = bits_apart(left(place), self.whole(*options, fresh=fresh)) if ended else 0
        result.bits_lost += lost
        result.survived += tried if good and ended and not lost else 0
        if place.is_mount():
            return
        shutil.rmtree(place)

    def table(self) -> Table:
        """A row for each fault."""
        table = Table("fault", "tried", "survived", "bits lost", "said")
        for name, result in self.results.items():
            table.add_row(name, *map(Text, _cells(result)))
        return table

    def page(self, options: str) -> str:
        """The table as a page."""
        from methods_table import machine

        rows = [f"| {name} | {' | '.join(_cells(result))} |" for name, result in self.results.items()]
        head = "| fault | tried | survived | bits lost | said |\n|---|---|---|---|---|"
        explained = (__doc__ or "").split("\n\n")[2].replace("\n", " ")
        command = f"    python scripts/chaos.py {options}".rstrip()
        setting = f"{datetime.date.today()}, {machine()}; an undisturbed run takes {self.seconds:.1f} s."
        return (
            "\n\n".join(
                ["# Faults, and what became of the runs", explained, command, setting, "\n".join([head, *rows])]
            )
            + "\n"
        )


def _cells(result: Result) -> list[str]:
    if result.not_tried:
        return ["0", "", "", result.not_tried]
    return [str(result.tried), str(result.survived), str(result.bits_lost), result.said]


if __name__ == "__main__":
    main()
