"""The faults of chaos.py, each done to a run as often as it is worth."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chaos_runs import TOP, Command, bits_apart, left, newest, run_of, short, words

if TYPE_CHECKING:
    from chaos import Chaos


@dataclass
class Result:
    """What became of one kind of fault."""

    tried: int = 0
    survived: int = 0
    bits_lost: int = 0
    said: str = ""
    not_tried: str = ""


class NotHere(Exception):  # noqa: N818
    """This machine cannot do that to a run."""


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
        said = short(killed.sentence(), place)  # where it failed by itself
        shutil.rmtree(place / "exported", ignore_errors=True)
        if code == 0:  # there are not so many operations
            most = count - 1
            continue
        result.tried += 1
        if code == -signal.SIGKILL:
            again = Command(place, export)
            whole = not half and again.wait() == 0
            result.survived += whole
            said = result.said if whole else short(again.sentence(), place)
            shutil.rmtree(place / "exported", ignore_errors=True)
        result.said = said
    shutil.rmtree(place)


def _opens(directory: Path) -> bool:
    return (directory / "adapter_model.safetensors").is_file() and (directory / "adapter_config.json").is_file()


def stopped(chaos: Chaos, place: Path, *options: str, after: int = 15) -> Path:
    """Trains until some steps are saved, and kills; the newest checkpoint that the run knows of."""
    command = chaos.fit(place, *options)
    while command.wait(0) is None and newest(place) < after:
        time.sleep(0.002)
    command.kill()
    command.wait()
    return (run_of(place) / "checkpoints/last.ckpt").resolve()


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
            result.said = short(said[0], place) if said else "nothing"
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
        result.said = short(command.sentence(), place)
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
            result.said = short(command.sentence(), place)
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
    result.said = short(command.sentence(), place)
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
            result.said = short(command.sentence(), place)
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
            result.said = short(command.sentence(), place)
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
        result.said = short(command.sentence(), place)
        chaos.judge(result, place, 1, command.refused())


def worker_killed(chaos: Chaos, result: Result) -> None:
    """A process that makes batches is killed: training ends with a sentence, and goes on when told again."""
    workers = ["--data.workers", "2"]
    for _ in range(max(1, chaos.kills // 50)):
        place = chaos.new_place()
        command = chaos.fit(place, *workers)
        while command.wait(0) is None and (newest(place) < 5 or not command.children()):
            time.sleep(0.002)
        os.kill(chaos.dice.choice(command.children()), signal.SIGKILL)
        command.wait(60)
        result.said = short(command.sentence(), place)
        chaos.judge(result, place, 1, command.refused(), *workers)


def rank_killed(chaos: Chaos, result: Result) -> None:
    """One of two processes that train together is killed: the other ends within a minute, not with 0."""
    two = ["--trainer.devices", "2"]
    place = chaos.new_place()
    command = chaos.fit(place, *two, fresh=True)
    while command.wait(0) is None and newest(place) < 5:
        time.sleep(0.01)
    os.kill(command.children()[0], signal.SIGKILL)
    code = command.wait(60)
    result.said = short(command.sentence(), place)
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
        while first.wait(0) is None and newest(place) < 3:
            time.sleep(0.002)
        second = chaos.fit(place)
        second.wait()
        first.kill()
        first.wait()
        result.said = short(second.sentence(), place)
        chaos.judge(result, place, 1, second.refused() and "is being worked in" in second.sentence())


def told_to_stop(chaos: Chaos, result: Result) -> None:
    """SIGTERM, SIGUSR1 and SIGUSR2 at random moments of training, again and again: exit code 75 each time."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    chaos.whole()
    while result.tried < max(1, chaos.kills // 8):
        place, told, good = chaos.new_place(), 0, True
        while told < 12:
            began = newest(place)
            command = chaos.fit(place)
            while command.wait(0) is None and newest(place) <= began:
                time.sleep(0.002)
            if command.wait(chaos.dice.uniform(0, 0.2)) is not None:
                break
            command.kill(chaos.dice.choice(numbers))
            good &= command.wait() in (75, 0)
            told += 1
            result.said = short(command.sentence(), place)
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
