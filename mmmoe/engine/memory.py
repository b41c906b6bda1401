"""What to do about a step that does not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmmoe.engine.spec import TrainingSpec


class MemoryFullError(RuntimeError):
    """A GPU or the machine had no memory left; what was saved before is intact."""


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether memory was refused: by a GPU, by torch on the host, or by Python."""
    import torch  # here: commands that compute nothing have no other use for it

    if isinstance(error, torch.OutOfMemoryError | MemoryError | MemoryFullError):
        return True
    # On the host torch has no class for it.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


@contextmanager
def memory_explained(where: str, training: TrainingSpec, key: str) -> Iterator[None]:
    """Inside, a refusal of memory is told with where it was and which fields change that.

    Args:
        where: what was done.
        training: its declaration,
        key: and where that stands in the run's.

    Raises:
        MemoryFullError: in its place.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryFullError(
            f"out of memory in {where}, micro_batch {training.micro_batch}: {_cures(training, key)}. "
            f"What was saved before is intact ({_first_line(error)})"
        ) from error


def _cures(training: TrainingSpec, key: str) -> str:
    cures = []
    if training.micro_batch > 1:
        half = training.micro_batch // 2
        cures.append(f"resume with {key}.micro_batch={half} (the batch, and so what is learned, stays the same)")
    if not training.gradient_checkpointing:
        cures.append(f"set {key}.gradient_checkpointing=true (slower, the same results)")
    cures.append("or share the state out with a higher engine.zero on more processes")
    return ", ".join(cures) + "; `mmmoe plan` shows what takes the memory"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
