import os
import signal
import time

import pytest

from ftlab.callbacks.checkpoints import Checkpoints
from ftlab.callbacks.preemption import Preemption
from ftlab.errors import Preempted
from ftlab.runs import Run
from ftlab.runs.options import RunOptions


def test_a_signal_of_which_a_library_makes_an_error_is_still_one(run: Run) -> None:
    def library() -> None:
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(5)  # the handler ends it
        except BaseException as error:
            raise RuntimeError("a callback failed") from error

    options = RunOptions()
    preemption = Preemption(Checkpoints(run, options.checkpoints), options)
    with pytest.raises(Preempted, match="stopped by SIGUSR1 before training began"), preemption:
        library()
