"""Commands of ftlab as processes that start at once: forked by a server that has imported all, where the interpreter
would take seconds of every test to do so. They are killed, starve and exit like any other.

`python forked.py SOCKET` is the server. It ends with the process that has started it.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import os
import pickle
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

TOP = Path(__file__).resolve().parents[2]


class Forked:
    """An ftlab command; offers what tests use of a `subprocess.Popen` with pipes.

    Args:
        words: The command, without `ftlab`.
        environment: Variables beside those of this process.
        own_session: Begin a session, to be killed with all that is in it.
    """

    _server: subprocess.Popen[bytes] | None = None
    _place: Path

    def __init__(self, words: list[str], environment: dict[str, str] | None = None, own_session: bool = False) -> None:
        self._start_server()
        self._err, err = os.pipe()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(self._place / "socket"))
        request = {
            "words": words,
            "place": os.getcwd(),
            "environment": os.environ | (environment or {}),
            "own_session": own_session,
        }
        socket.send_fds(self._connection, [b"2"], [err])
        os.close(err)
        self._connection.sendall(pickle.dumps(request))
        self._connection.shutdown(socket.SHUT_WR)
        self.pid = self._answer()
        self.returncode: int | None = None

    def poll(self, seconds: float | None = 0) -> int | None:
        """The exit code, negative for a signal; None where the process has not ended."""
        if self.returncode is None and select.select([self._connection], [], [], seconds)[0]:
            self.returncode = os.waitstatus_to_exitcode(self._answer())
            self._connection.close()
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[None, str]:
        """What has been said on standard error, once the process and those that it started have closed it.

        Raises:
            TimeoutExpired: They have not in so many seconds.
        """
        until, said = time.monotonic() + timeout, b""
        while select.select([self._err], [], [], max(0, until - time.monotonic()))[0]:
            if not (part := os.read(self._err, 1 << 16)):
                os.close(self._err)
                self.poll(None)
                return None, said.decode()
            said += part
        raise subprocess.TimeoutExpired(["ftlab"], timeout)

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _answer(self) -> int:
        line = b""
        while not line.endswith(b"\n"):
            line += self._connection.recv(1) or b"\n"
        return int(line)

    @classmethod
    def _start_server(cls) -> None:
        if cls._server is not None:
            return
        cls._place = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, cls._place, ignore_errors=True)
        command = [sys.executable, __file__, str(cls._place / "socket")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TOP), os.environ.get("PYTHONPATH", "")])}
        cls._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=TOP)
        assert cls._server.stdout is not None
        assert cls._server.stdout.readline() == b"ready\n"


def serve(address: str) -> None:
    """Forks a process for every command that is asked for, until standard input ends."""
    for name in ("ftlab.cli.verbs", "ftlab.cli.export"):
        importlib.import_module(name)

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    with socket.socket(socket.AF_UNIX) as asked:
        asked.bind(address)
        asked.listen()
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([sys.stdin, asked], [], [])
            if sys.stdin in ready:
                return
            connection, _ = asked.accept()
            if os.fork():
                connection.close()
                continue
            asked.close()
            keep(connection)


def keep(connection: socket.socket) -> None:
    """Is the parent of a command: tells its number, and how it has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, (err,), _, _ = socket.recv_fds(connection, 1, 1)
    request = b""
    while part := connection.recv(1 << 16):
        request += part
    if not (pid := os.fork()):
        connection.close()
        become(err, **pickle.loads(request))
    os.close(err)
    connection.sendall(f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    connection.sendall(f"{status}\n".encode())
    os._exit(0)


def become(err: int, words: list[str], place: str, environment: dict[str, str], own_session: bool) -> NoReturn:
    """Is from here on the process that a shell would start, with standard error at `err`."""
    if own_session:
        os.setsid()
    os.chdir(place)
    os.environ |= environment
    for descriptor, source in enumerate((os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY), err)):
        os.dup2(source, descriptor)
        os.close(source)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Lightning starts further processes by what it finds here
    sys.argv = [str(TOP / "ftlab/__main__.py"), *words]
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("ftlab.__main__")
    from ftlab.cli import main

    sys.exit(main())


if __name__ == "__main__":
    serve(sys.argv[1])
