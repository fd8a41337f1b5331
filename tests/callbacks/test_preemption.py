import os
import signal
import time

import pytest

from ftlab.callbacks.checkpoints import Checkpoints
from ftlab.callbacks.preemption import Preemption
from ftlab.errors import Preempted
from ftlab.runs import Run
from ftlab.runs.options import RunOptions


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_a_signal_of_which_a_library_makes_an_error_is_still_one(number: signal.Signals, run: Run) -> None:
    """Of the user's a KeyboardInterrupt, which ends the command with 130."""

    def library() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)  # the handler ends it
        except BaseException as error:
            raise RuntimeError("a callback failed") from error

    options = RunOptions()
    preemption = Preemption(Checkpoints(run, options.checkpoints), options)
    kind = KeyboardInterrupt if number == signal.SIGINT else Preempted
    with pytest.raises(kind, match=f"stopped by {number.name} before training began"), preemption:
        library()
