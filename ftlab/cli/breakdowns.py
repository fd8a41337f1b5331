"""What breaks under a command through no fault of its configuration, each in one sentence: memory, disk, processes."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from ftlab.errors import UserError, one_line

if TYPE_CHECKING:
    from ftlab.cli.experiment import Experiment

# what torch and others say, in errors that are of no class of their own
_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE
)
_TRIED = re.compile(r"(?:[Tt]ried to allocate|Unable to allocate) ([\d.]+ ?(?:[KMGTPE]i?B|bytes))")
_WORKER = re.compile(r"DataLoader worker \(pid\(?s?\)? ?([\d, ]+)\)")
_PEER = re.compile(r"gloo|nccl|connection (?:closed|reset)|socket|process group|TCPStore|broken pipe", re.IGNORECASE)
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES, errno.EPERM}
