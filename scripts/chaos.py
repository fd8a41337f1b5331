"""Faults done to real runs, and what became of the runs: killed, torn, starved, and set going again.

    python scripts/chaos.py [--kills 200] [--only FAULT …] [--output docs/results/chaos.md]

Each run is the demo's LoRA with dropout, 40 steps, a checkpoint and a line of the curves at every step. It is stopped
by the fault, the fault is mended, and the same command is given until it comes to its end. What it leaves is compared
with what an undisturbed run left: the files of `model/`, and the curves but for times and memory. A bit that differs
is a bit lost; a run that does not end, or a fault that is not said in one sentence, is one that was not survived.

A command is a process, forked from this one, which has imported torch: it is killed, starves and exits like any other,
and starts in a fraction of the time. What needs Lightning to start further processes starts from nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

TOP = Path(__file__).resolve().parent.parent
STEPS = 40
FAULTY = '''
"""LoRA on a network that fails where a file of the fault's name lies in the working directory."""
from pathlib import Path
import torch
from ftlab.methods import LoRA

def fail(network, arguments, output):
    if Path("no memory in training").exists() and network.training or \\
            Path("no memory in evaluation").exists() and not network.training:
        torch.empty(1 << 50)
    if Path("not a number").exists() and network.training:
        output.logits = output.logits * float("nan")
    return output

class Faulty(LoRA):
    def adapt(self, network, batches=None):
        network.register_forward_hook(fail)
        return super().adapt(network, batches)
'''


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
        options.output.write_text(chaos.page(" ".join(sys.argv[1:])), encoding="utf-8")
    sys.exit(any(result.survived < result.tried or result.bits_lost for result in chaos.results.values()))


def import_all() -> None:
    """What every command needs, before processes are forked; torch starts no thread by it."""
    import ftlab.cli.export
    import ftlab.cli.verbs  # noqa: F401


class Command:
    """One ftlab command in a process of its own.

    Args:
        place: Its working directory.
        words: The command.
        fresh: Start the interpreter anew instead of forking this one.
        before: Called in the process first.
    """

    def __init__(
        self, place: Path, words: list[str], fresh: bool = False, before: Callable[[], object] | None = None
    ) -> None:
        self.said = place / f"said-{len(list(place.glob('said-*')))}"
        self.pid = os.fork()
        if self.pid:
            self._code: int | None = None
            return
        code = 70
        try:
            os.chdir(place)
            out = os.open(self.said, os.O_WRONLY | os.O_CREAT)
            for descriptor in (1, 2):
                os.dup2(out, descriptor)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if fresh:
                os.environ["PYTHONPATH"] = str(TOP)
                os.execv(sys.executable, [sys.executable, "-m", "ftlab", *words])
            if before:
                before()
            from ftlab.cli import main as ftlab

            code = ftlab(words)
        except BaseException:  # a bug of ours, to be seen in what was said
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self, seconds: float = 120) -> int | None:
        """The exit code, negative for a signal; None where the process does not end in time."""
        for _ in range(int(seconds / 0.005) + 1):
            if self._code is not None:
                break
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
                break
            time.sleep(0.005)
        return self._code

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal, where the process has not ended."""
        if self.wait(0) is None:
            os.kill(self.pid, number)

    def children(self) -> list[int]:
        """Processes that it has started and that live."""
        found = [Path(f"/proc/{self.pid}/task/{task}/children") for task in os.listdir(f"/proc/{self.pid}/task")]
        return [int(pid) for path in found for pid in path.read_text().split()]

    def sentence(self) -> str:
        """The last line that was said."""
        lines = [line for line in self.said.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def refused(self) -> bool:
        """Whether it ended with 1 and a sentence of ftlab, and no trace."""
        said = self.said.read_text(errors="replace")
        return self._code == 1 and self.sentence().startswith("ftlab: ") and "Traceback" not in said


@dataclass
class Result:
    """What became of one kind of fault."""

    tried: int = 0
    survived: int = 0
    bits_lost: int = 0
    said: str = ""
    not_tried: str = ""


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


class NotHere(Exception):  # noqa: N818
    """This machine cannot do that to a run."""


def words(verb: str, *options: str) -> list[str]:
    """The command of a verb on the experiment that all faults are done to."""
    said = {
        "run.name": "chaos",
        "run.checkpoints.every_n_steps": "1",
        "wandb.mode": "disabled",
        "data.path": str(TOP / "ftlab/assets/data"),
        "data.batch_size": "2",
        "data.validation_limit": "8",
        "data.cache": "cache",
        "model.network.path": str(TOP / "ftlab/assets/network"),
        "model.method": "faulty.Faulty",
        "model.method.dropout": "0.1",
        "trainer.accelerator": "cpu",
        "trainer.max_steps": str(STEPS),
        "trainer.val_check_interval": "9",
        "trainer.log_every_n_steps": "1",
        "trainer.enable_progress_bar": "false",
    }
    files = ["-c", str(TOP / "experiments/base.yaml"), "-c", str(TOP / "experiments/data/demo.yaml")]
    return [verb, *files, *(word for name, value in said.items() for word in (f"--{name}", value)), *options]


def run_of(place: Path) -> Path:
    return place / "runs/demo/chaos"


def left(place: Path) -> dict[str, bytes]:
    """What a run leaves that must not depend on faults, by name."""
    run = run_of(place)
    files = {path.name: path.read_bytes() for path in sorted((run / "model").glob("*"))}
    header, *rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    kept = [number for number, name in enumerate(header) if name not in ("tokens_per_second", "peak_memory")]
    curves = "\n".join(",".join(row[number] for number in kept) for row in [header, *rows])
    return files | {"curves": curves.encode()}


def bits_apart(one: dict[str, bytes], other: dict[str, bytes]) -> int:
    """Bits in which two runs differ; where one is longer, all that it has more."""
    apart = 0
    for name in {**one, **other}:
        a, b = one.get(name, b""), other.get(name, b"")
        apart += sum((x ^ y).bit_count() for x, y in zip(a, b, strict=False)) + 8 * abs(len(a) - len(b))
    return apart


# ------------------------------------------------------------------------------------------------------- the faults


def random_moments(chaos: Chaos, result: Result) -> None:
    """Kill -9, again and again, until the run has come to its end."""
    chaos.whole()
    while result.tried < chaos.kills:
        place, killed = chaos.new_place(), 0
        while killed < 12 and result.tried + killed < chaos.kills:
            command = chaos.fit(place)
            if command.wait(chaos.dice.uniform(0, 1.1 * chaos.seconds)) is not None:
                break
            command.kill()
            command.wait()
            killed += 1
        chaos.judge(result, place, killed, True)


def while_written(*targets: str) -> Callable[[Chaos, Result], None]:
    """Kill -9 while files are opened, moved or removed whose paths hold one of `targets`, or just after."""

    def fault(chaos: Chaos, result: Result) -> None:
        most = 40
        while result.tried < max(1, chaos.kills // 20):
            place = chaos.new_place()
            count, after = chaos.dice.randint(1, most), chaos.dice.uniform(0, 0.002)
            command = chaos.fit(place, before=lambda count=count, after=after: kill_at(targets, count, after))
            if command.wait() == -signal.SIGKILL:
                chaos.judge(result, place, 1, True)
            else:  # there are not so many operations
                most = count - 1
                shutil.rmtree(place)

    return fault


def kill_at(targets: tuple[str, ...], count: int, after: float) -> None:
    """Has this process killed at its `count`-th operation on such a file, or `after` seconds later."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.symlink", "shutil.move"):
            return
        if any(target in str(argument) for argument in arguments[:2] for target in targets):
            seen += 1
            if seen == count:
                if after < 0.001:
                    os.kill(os.getpid(), signal.SIGKILL)
                threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()

    sys.addaudithook(hook)


def while_exporting(chaos: Chaos, result: Result) -> None:
    """Kill -9 while an export is written: the directory is not there, or whole."""
    place = chaos.new_place()
    chaos.to_the_end(place)
    export = ["export", str(run_of(place)), "exported", "--records", "0"]
    most = 12
    while result.tried < max(1, chaos.kills // 20):
        count = chaos.dice.randint(1, most)
        killed = Command(place, export, before=lambda count=count: kill_at(("exported",), count, 0))
        code, there = killed.wait(), (place / "exported").exists()
        half = there and not _opens(place / "exported")
        shutil.rmtree(place / "exported", ignore_errors=True)
        if code != -signal.SIGKILL:  # there are not so many operations
            most = count - 1
            continue
        result.tried += 1
        result.survived += not half and Command(place, export).wait() == 0
    shutil.rmtree(place)


def _opens(directory: Path) -> bool:
    return (directory / "adapter_model.safetensors").is_file() and (directory / "adapter_config.json").is_file()


def stopped(chaos: Chaos, place: Path, *options: str, after: int = 15) -> Path:
    """Trains until some steps are saved, and kills; the newest checkpoint."""
    command = chaos.fit(place, *options)
    while command.wait(0) is None and newest(place)[0] < after:
        time.sleep(0.002)
    command.kill()
    command.wait()
    return newest(place)[1]


def newest(place: Path) -> tuple[int, Path]:
    found = [(int(path.name.split("-")[1]), path) for path in run_of(place).glob("checkpoints/last-*.ckpt")]
    return max(found, default=(0, Path()))


def truncate(path: Path, dice: random.Random) -> None:
    os.truncate(path, dice.randrange(path.stat().st_size))


def flip_a_bit(path: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def damaged_checkpoint(damage: Callable[[Path, random.Random], None]) -> Callable[[Chaos, Result], None]:
    """The newest checkpoint is damaged: the one before is taken, with a line said."""

    def fault(chaos: Chaos, result: Result) -> None:
        for _ in range(max(1, chaos.kills // 20)):
            place = chaos.new_place()
            damage(stopped(chaos, place), chaos.dice)
            command = chaos.fit(place)
            command.wait()
            said = [line for line in command.said.read_text().splitlines() if "is damaged" in line]
            result.said = _short(said[0], place) if said else "nothing"
            chaos.judge(result, place, 1, bool(said))

    return fault


def damaged_model(chaos: Chaos, result: Result) -> None:
    """A file of model/ has a bit flipped: an export of it is refused."""
    place = chaos.new_place()
    chaos.to_the_end(place)
    for _ in range(max(1, chaos.kills // 20)):
        path = chaos.dice.choice(sorted(run_of(place).glob("model/*.safetensors")))
        before = path.read_bytes()
        flip_a_bit(path, chaos.dice)
        command = Command(place, ["export", str(run_of(place)), "exported", "--records", "0"])
        command.wait()
        result.tried += 1
        result.survived += command.refused() and not (place / "exported").exists()
        result.said = _short(command.sentence(), place)
        path.write_bytes(before)
    shutil.rmtree(place)


def damaged_cache(chaos: Chaos, result: Result) -> None:
    """A file of the data cache is truncated or has a bit flipped while the run is stopped."""
    for number in range(max(1, chaos.kills // 20)):
        place = chaos.new_place()
        stopped(chaos, place)
        files = [path for path in sorted((place / "cache").rglob("*")) if path.is_file() and path.stat().st_size]
        (truncate, flip_a_bit)[number % 2](chaos.dice.choice(files), chaos.dice)
        command = chaos.fit(place)
        good = command.wait() == 0 or command.refused()
        if command.wait() != 0:
            result.said = _short(command.sentence(), place)
            shutil.rmtree(place / "cache")
        chaos.judge(result, place, 1, good)


def other_base(chaos: Chaos, result: Result) -> None:
    """The base network's weights have a bit flipped while the run is stopped: going on is refused."""
    place = chaos.new_place()
    shutil.copytree(TOP / "ftlab/assets/network", place / "network")
    weights, path = place / "network/model.safetensors", ["--model.network.path", "network"]
    stopped(chaos, place, *path)
    before = weights.read_bytes()
    content = bytearray(before)
    content[-chaos.dice.randrange(1, len(content) // 2)] ^= 64  # of a weight, not of the header
    weights.write_bytes(content)
    command = chaos.fit(place, *path)
    command.wait()
    result.said = _short(command.sentence(), place)
    weights.write_bytes(before)
    good = command.refused()
    result.tried += 1
    ended = chaos.to_the_end(place, *path)
    theirs, ours = left(place), chaos.whole()
    result.bits_lost += bits_apart({"curves": theirs["curves"]}, {"curves": ours["curves"]}) if ended else 0
    result.survived += good and ended and not result.bits_lost
    shutil.rmtree(place)


def flagged(flag: str) -> Callable[[Chaos, Result], None]:
    """The method fails, on a run that has gone on for a while."""

    def fault(chaos: Chaos, result: Result) -> None:
        for _ in range(max(1, chaos.kills // 50)):
            place = chaos.new_place()
            stopped(chaos, place, after=chaos.dice.randint(3, 30))
            (place / flag).touch()
            command = chaos.fit(place)
            command.wait()
            result.said = _short(command.sentence(), place)
            (place / flag).unlink()
            chaos.judge(result, place, 1, command.refused())

    return fault


@contextlib.contextmanager
def mounted(place: Path, size: str) -> Iterator[Path]:
    """A file system in memory of a size.

    Raises:
        NotHere: This process may not mount one.
    """
    place.mkdir(parents=True)
    if os.system(f"mount -t tmpfs -o size={size} tmpfs '{place}' 2>/dev/null"):
        raise NotHere("mounting is not allowed here")
    try:
        yield place
    finally:
        os.system(f"umount '{place}'")


def disk_full(chaos: Chaos, result: Result) -> None:
    """The disk fills up at some moment; then there is room again."""
    number = 0
    while result.tried < max(1, chaos.kills // 20):
        number += 1
        room = chaos.dice.choice(["2m", "3m", "4m", "5m", "6m", "7m", "8m"])
        with mounted(chaos.place / f"full{number}", room) as disk:
            place = chaos.new_place(disk)
            command = chaos.fit(place)
            if command.wait() == 0:  # there was room enough
                continue
            result.said = _short(command.sentence(), place)
            os.system(f"mount -o remount,size=200m '{disk}'")
            chaos.judge(result, place, 1, command.refused())


def read_only(chaos: Chaos, result: Result) -> None:
    """The run's directory cannot be written to; then it can."""
    with mounted(chaos.place / "ro", "200m") as disk:
        place = chaos.new_place(disk)
        stopped(chaos, place)
        elsewhere = chaos.new_place()
        os.system(f"mount -o remount,ro '{disk}'")
        command = Command(
            elsewhere, words("fit", "--run.root", str(place / "runs"), "--data.cache", str(place / "cache"))
        )
        command.wait()
        os.system(f"mount -o remount,rw '{disk}'")
        result.said = _short(command.sentence(), place)
        chaos.judge(result, place, 1, command.refused())


def worker_killed(chaos: Chaos, result: Result) -> None:
    """A process that makes batches is killed: training ends with a sentence, and goes on when told again."""
    workers = ["--data.workers", "2"]
    for _ in range(max(1, chaos.kills // 50)):
        place = chaos.new_place()
        command = chaos.fit(place, *workers)
        while command.wait(0) is None and (newest(place)[0] < 5 or not command.children()):
            time.sleep(0.002)
        os.kill(chaos.dice.choice(command.children()), signal.SIGKILL)
        command.wait(60)
        result.said = _short(command.sentence(), place)
        chaos.judge(result, place, 1, command.refused(), *workers)


def rank_killed(chaos: Chaos, result: Result) -> None:
    """One of two processes that train together is killed: the other ends within a minute, not with 0."""
    two = ["--trainer.devices", "2"]
    place = chaos.new_place()
    command = chaos.fit(place, *two, fresh=True)
    while command.wait(0) is None and newest(place)[0] < 5:
        time.sleep(0.01)
    os.kill(command.children()[0], signal.SIGKILL)
    code = command.wait(60)
    result.said = _short(command.sentence(), place)
    command.kill()
    chaos.judge(result, place, 1, code not in (0, None), *two, fresh=True)


def clock_set_back(chaos: Chaos, result: Result) -> None:
    """The clock goes back by a day while the run is stopped."""

    def yesterday() -> None:
        now = time.time
        time.time = lambda: now() - 86_400

    for _ in range(max(1, chaos.kills // 50)):
        place = chaos.new_place()
        stopped(chaos, place)
        for path in run_of(place).rglob("*"):
            if not path.is_symlink():
                os.utime(path, (moment := chaos.dice.uniform(1, 4e9), moment))
        command = chaos.fit(place, before=yesterday)
        command.wait(1)
        command.kill()
        command.wait()
        chaos.judge(result, place, 1, True)


def two_in_one_directory(chaos: Chaos, result: Result) -> None:
    """A second process is refused while the first works there, and not when that was killed."""
    for _ in range(max(1, chaos.kills // 50)):
        place = chaos.new_place()
        first = chaos.fit(place)
        while first.wait(0) is None and newest(place)[0] < 3:
            time.sleep(0.002)
        second = chaos.fit(place)
        second.wait()
        first.kill()
        first.wait()
        result.said = _short(second.sentence(), place)
        chaos.judge(result, place, 1, second.refused() and "is being worked in" in second.sentence())


def told_to_stop(chaos: Chaos, result: Result) -> None:
    """SIGTERM, SIGUSR1 and SIGUSR2 at random moments of training, again and again: exit code 75 each time."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    chaos.whole()
    while result.tried < max(1, chaos.kills // 8):
        place, told, good = chaos.new_place(), 0, True
        while told < 12:
            began = newest(place)[0]
            command = chaos.fit(place)
            while command.wait(0) is None and newest(place)[0] <= began:
                time.sleep(0.002)
            if command.wait(chaos.dice.uniform(0, 0.2)) is not None:
                break
            command.kill(chaos.dice.choice(numbers))
            good &= command.wait() in (75, 0)
            told += 1
            result.said = _short(command.sentence(), place)
        chaos.judge(result, place, told, good)


FAULTS: dict[str, Callable[[Chaos, Result], None]] = {
    "kill -9 at a random moment": random_moments,
    "kill -9 while a checkpoint is written": while_written("checkpoints/"),
    "kill -9 while the curves are written": while_written("metrics.csv"),
    "kill -9 while the data cache is written": while_written("/cache", "cache/"),
    "kill -9 while model/ is written": while_written("/.model", "/model/"),
    "kill -9 while an export is written": while_exporting,
    "SIGTERM, SIGUSR1 or SIGUSR2": told_to_stop,
    "newest checkpoint truncated": damaged_checkpoint(truncate),
    "newest checkpoint with a bit flipped": damaged_checkpoint(flip_a_bit),
    "model/ with a bit flipped": damaged_model,
    "data cache truncated or with a bit flipped": damaged_cache,
    "base network with a bit flipped": other_base,
    "disk full": disk_full,
    "run directory read-only": read_only,
    "no memory in training": flagged("no memory in training"),
    "no memory in evaluation": flagged("no memory in evaluation"),
    "loss not a number": flagged("not a number"),
    "data worker killed": worker_killed,
    "one of two processes killed": rank_killed,
    "clock set back": clock_set_back,
    "two processes in one directory": two_in_one_directory,
}


def _cells(result: Result) -> list[str]:
    if result.not_tried:
        return ["0", "", "", result.not_tried]
    return [str(result.tried), str(result.survived), str(result.bits_lost), result.said]


def _short(sentence: str, place: Path) -> str:
    return sentence.removeprefix("ftlab: ").replace(f"{place}/", "").replace(str(TOP), ".")[:300]


if __name__ == "__main__":
    main()
