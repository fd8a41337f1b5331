"""A SLURM of the tests' own on this machine: every file in one directory, every process one that it started."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 30.0
"""Seconds in which a daemon must answer, or end."""

_CONFIGURATION = """ClusterName=ftlab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge/socket,cred_expire=5
CommunicationParameters=NoAddrCache,NoInAddrAny,NoCtldInAddrAny
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,batch_sched_delay=0,sched_min_interval=0,sched_interval=2
PriorityType=priority/basic
ReturnToService=1
JobRequeue=1
MinJobAge=3600
DefMemPerCPU={memory_of_cpu}
KillWait=5
OverTimeLimit=0
InactiveLimit=0
SlurmctldTimeout=60
SlurmdTimeout=120
MessageTimeout=20
UnkillableStepTimeout=60
SlurmctldPidFile={place}/controller/pid
SlurmctldLogFile={place}/log/slurmctld
StateSaveLocation={place}/controller
SlurmdPidFile={place}/%n/pid
SlurmdLogFile={place}/log/slurmd.%n
SlurmdSpoolDir={place}/%n
SlurmdParameters=config_overrides
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={place}/finished
AccountingStorageType=accounting_storage/none
GresTypes=gpu
PropagateResourceLimits=NONE
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def missing() -> str:
    """Why no cluster can be started here; nothing where one can."""
    programs = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name, path=_path())]
    if programs:
        return f"SLURM is not installed: there is no {', '.join(programs)}"
    return "" if os.geteuid() == 0 else "only root can start a cluster"


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


class PrivateCluster:
    """Nodes n1, n2, … with fake GPUs, in a partition `main`, for as long as the context lasts.

    Args:
        place: A directory; made.
        nodes: How many.
        cpus: Of each.
        gpus: Of each.
    """

    def __init__(self, place: Path, nodes: int = 2, cpus: int = 2, gpus: int = 1) -> None:
        self.place = place
        self.names = [f"n{number}" for number in range(1, nodes + 1)]
        self.cpus, self.gpus = cpus, gpus
        self.configuration = place / "slurm.conf"
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "PrivateCluster":
        try:
            self._write()
            socket_ = self.place / "munge/socket"
            self._start("munged", "--foreground", "--force", f"--socket={socket_}", *self._munge_files())
            self._wait(lambda: self._ask("munge", "-n", "-S", str(socket_)) is not None, "munged")
            self._start("slurmctld", "-D", "-c", "-f", str(self.configuration))
            for name in self.names:
                self._start("slurmd", "-D", "-N", name, "-f", str(self.configuration))
            self._wait(
                lambda: (self._ask("sinfo", "-h", "-N", "-o%T") or "").split().count("idle") == len(self.names), ""
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._ask("scontrol", "ping"):
            self._ask("scancel", "--full", f"--user={os.getuid()}")
            self._wait(lambda: not self._ask("squeue", "-h"), "jobs", quietly=True)
        for process in reversed(self._started):
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def control(self, *words: str) -> None:
        """Calls scontrol."""
        assert self._ask("scontrol", *words) is not None, words

    def resume(self) -> None:
        """Has all nodes back at work, idle."""
        for name in self.names:
            self._ask("scontrol", "update", f"nodename={name}", "state=resume")

    def _write(self) -> None:
        for name in ("munge", "controller", "log", "devices", *self.names):
            (self.place / name).mkdir(parents=True)
        self.place.chmod(0o755)
        key = self.place / "munge/key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        port = _free_ports(1 + len(self.names))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 8 // 10 // 2**20 // len(self.names)
        host = socket.gethostname().partition(".")[0]
        rows, devices = [], []
        for number, name in enumerate(self.names):
            rows.append(
                f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + 1 + number} CPUs={self.cpus} "
                f"RealMemory={memory} Gres=gpu:fake:{self.gpus} State=UNKNOWN"
            )
            for gpu in range(self.gpus):  # SLURM wants a device of its own for each: any will do
                device = self.place / "devices" / f"{name}-{gpu}"
                os.mknod(device, 0o20600, os.makedev(1, 3))
                devices.append(f"NodeName={name} Name=gpu Type=fake File={device}")
        (self.place / "gres.conf").write_text("\n".join(devices) + "\n")
        (self.place / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        self.configuration.write_text(
            _CONFIGURATION.format(
                host=host,
                port=port,
                place=self.place,
                memory_of_cpu=memory // self.cpus,
                nodes="\n".join(rows),
                names=",".join(self.names),
            )
        )

    def _munge_files(self) -> list[str]:
        place = self.place / "munge"
        files = {"key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        return [f"--{option}={place / name}" for option, name in files.items()]

    def _start(self, *command: str) -> None:
        with (self.place / "log" / f"{command[0]}.out").open("ab") as out:
            self._started.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env=self._environment(),
                    start_new_session=True,
                )
            )

    def _environment(self) -> dict[str, str]:
        return os.environ | {"SLURM_CONF": str(self.configuration), "PATH": _path()}

    def _ask(self, *command: str) -> str | None:
        done = subprocess.run(
            command, env=self._environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        return done.stdout if done.returncode == 0 else None

    def _wait(self, done: Callable[[], bool], what: str, quietly: bool = False) -> None:
        until = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > until:
                if quietly:
                    return
                logs = "\n".join(file.read_text()[-500:] for file in sorted((self.place / "log").iterdir()))
                raise TimeoutError(f"the private cluster does not come up ({what}):\n{logs}")
            time.sleep(0.1)


def _free_ports(number: int) -> int:
    """The first of so many ports in a row that nobody listens on, below those that connections take."""
    for _ in range(200):
        first, taken = 17000 + secrets.randbelow(13000), []
        try:
            for port in range(first, first + number):
                taken.append(socket.socket())
                taken[-1].bind(("0.0.0.0", port))
            return first
        except OSError:
            continue
        finally:
            for each in taken:
                each.close()
    raise OSError("there are no free ports")
