"""How checkpoints reach the disk: whole, known by their digest, and if wanted in a thread beside training."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from ftlab.errors import UserError
from ftlab.modules.sharding.checkpoint_parts import Parts, divide, read
from ftlab.runs import CheckpointFiles

Agree = Callable[[bool], bool]


class WholeCheckpointIO(CheckpointIO):
    """Writes checkpoints as `CheckpointFiles` keeps them, of tensors and plain values only, and reads them likewise.

    Args:
        files: Where they go.
        asynchronous: Copy the tensors to the CPU and write them in a thread; `wait` says when it is done. The copy's
            memory is kept for the next one: to get it anew takes longer than to copy. Lightning's own
            AsyncCheckpointIO copies tensors where they are, on the GPU.
    """

    def __init__(self, files: CheckpointFiles, asynchronous: bool = False) -> None:
        self.files = files
        self.best_steps: list[int] = []
        """Of which steps the best checkpoints are kept, the best first: `best.ckpt` names that."""
        self._best_of_last: deque[tuple[int, ...]] = deque(maxlen=2)  # as the last two checkpoints say
        self._thread = ThreadPoolExecutor(1, "checkpoints") if asynchronous else None
        self._writing: Future[None] | None = None
        self._buffers: list[Tensor] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes `checkpoint`, and has `path`, `last.ckpt` or `best.ckpt`, name it.

        Raises:
            UserError: There is no room for it, or the one before could not be written.
        """
        self.wait()
        self.files.check_room(tensor_bytes(checkpoint))
        best = tuple(self.best_steps)
        if self._thread is None:
            self._write(checkpoint, Path(path), best)
        else:
            self._writing = self._thread.submit(self._write, self._copied(checkpoint), Path(path), best)

    def save_part(self, checkpoint: dict[str, Any], path: str | Path, parts: Parts, number: int, agree: Agree) -> None:
        """Writes this process's part of `checkpoint`, then the first process all else: one that lacks a part is none.

        Args:
            checkpoint: With its parts of tensors.
            path: `last.ckpt` or `best.ckpt`, which names the first's file.
            parts: Of which this is one.
            number: Of this process.
            agree: Whether all processes say yes; waits for them.

        Raises:
            UserError: As `save_checkpoint`; or another process could not write its part.
        """
        rest, own = divide(checkpoint, parts)
        failed: UserError | None = None
        try:
            self.files.check_room(tensor_bytes(own) * parts.of)  # others write theirs
            with self._saying_where(parts.step):
                self.files.write_part(parts.kind, parts.step, number, parts.of, lambda file: torch.save(own, file))
        except UserError as error:
            failed = error
        all_there = agree(failed is None)
        if failed:
            raise failed
        if not all_there:
            raise UserError(
                f"the checkpoint of step {parts.step} is not whole: another process could not write its part, and says "
                "why; the one before stands"
            )
        if number == 0:
            self._write(rest, Path(path), tuple(self.best_steps), parts.of)

    def _copied(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        before, self._buffers = iter(self._buffers), []

        def copy(tensor: Tensor) -> Tensor:
            buffer = next(before, None)
            if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
                buffer = torch.empty_like(tensor, device="cpu", requires_grad=False)
            self._buffers.append(buffer)
            return buffer.copy_(tensor.detach())

        return apply_to_collection(checkpoint, Tensor, copy)

    def _write(self, checkpoint: dict[str, Any], link: Path, best: tuple[int, ...], parts: int = 0) -> None:
        step = checkpoint["global_step"]
        named = link != self.files.best or step == best[0]
        with self._saying_where(step):
            self.files.write(link.stem, step, lambda file: torch.save(checkpoint, file), named, parts)
            if link == self.files.last:
                self._best_of_last.append(best)
            self.files.keep({*best, *chain.from_iterable(self._best_of_last)})

    @contextmanager
    def _saying_where(self, step: int) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # torch says as a RuntimeError what a writer raised
            raise UserError(
                f"the checkpoint of step {step} could not be written into {self.files.directory} "
                f"({' '.join(str(error).split())}); the one before stands: make room or mend the disk, and give the "
                "command again"
            ) from error

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Tensors and plain values: nothing in a checkpoint is run."""
        return read(Path(path), map_location=map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        """`CheckpointFiles.keep` removes them."""

    def go_on(self, step: int) -> None:
        """Forgets the best checkpoints that training after `step` has not seen, and has `best.ckpt` name the best."""
        self.files.go_on(step, self.best_steps)
        self._best_of_last = deque([tuple(self.best_steps)] * 2, maxlen=2)

    def wait(self) -> None:
        """Until what was begun is on the disk.

        Raises:
            UserError: It could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def teardown(self) -> None:
        """As `wait`: called by Lightning, however training ends."""
        self.wait()


def tensor_bytes(content: Any) -> int:
    """Bytes of all tensors in nested dictionaries and lists."""
    if isinstance(content, Tensor):
        return content.nbytes
    if isinstance(content, dict):
        return sum(tensor_bytes(value) for value in content.values())
    if isinstance(content, list | tuple):
        return sum(tensor_bytes(value) for value in content)
    return 0
