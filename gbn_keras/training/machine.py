"""What the settings ask of the machine: which micro-batches, and what cannot be."""

import math

from gbn_keras.replicas import cut_ghosts
from gbn_keras.training.errors import UsageError
from gbn_keras.training.settings import Settings


def check_machine(settings: Settings, replicas: int) -> None:
    """Raises a `UsageError` for settings that no machine could use."""
    if replicas > 1 and not settings.virtual_batch_size and settings.jit == "on":
        # Replicas cannot communicate inside a compiled function.
        raise UsageError(
            f"--jit: got on, wanted auto or off, because plain batch normalization "
            f"over {replicas} replicas cannot be compiled. Leave it out."
        )
    if math.isnan(settings.memory_budget):
        raise UsageError(
            f"--memory_budget: got {settings.memory_budget}, wanted the GiB that an "
            "update may use, or 0 for half of the device's memory."
        )


def planned_micro_batch(settings: Settings, replicas: int) -> int:
    """The micro-batch that was asked for, or else the ghosts of a replica's share.

    Raises:
        UsageError: If there is no such micro-batch.
    """
    batch, ghost = settings.batch_size, settings.virtual_batch_size
    if replicas > 1 and batch % (replicas * (ghost or 1)):
        # Without ghosts, the share must be a whole number of examples.
        raise UsageError(f"--batch_size: {cut_ghosts(batch, replicas, ghost or 1)}.")
    share = batch // replicas
    if settings.stretch == "auto" and replicas == 1:
        most = _half(settings, share, ghost)
        if (settings.micro_batch_size or most) > most:
            raise UsageError(
                f"--micro_batch_size: got {settings.micro_batch_size}, wanted at most "
                f"{most} with --stretch=auto, which compares the gradients of at least "
                "two micro-batches. Lower it, or leave it out."
            )
        micro_batch_size = settings.micro_batch_size or most
    else:
        micro_batch_size = settings.micro_batch_size or share
    if micro_batch_size >= share:
        return share // (ghost or 1) * (ghost or 1)
    if not ghost:
        raise UsageError(
            f"--micro_batch_size: got {micro_batch_size}, wanted 0 with "
            "--virtual_batch_size=0, because plain batch normalization needs all "
            f"{share} examples at once. Leave it out, or use ghosts."
        )
    if micro_batch_size % ghost:
        raise UsageError(
            f"--micro_batch_size: got {micro_batch_size}, wanted a multiple of the "
            f"ghost size, {ghost}, or 0 for one that fits into memory."
        )
    return micro_batch_size


def _half(settings, share, ghost):
    """The whole ghosts in half of a share: with them, it has two micro-batches."""
    if settings.batch_size == settings.small_batch_size:
        return share  # The gain is 1 whatever is measured.
    if ghost and share >= 2 * ghost:
        return share // ghost // 2 * ghost
    what = f"one ghost of {share}" if ghost else "plain batch normalization"
    raise UsageError(
        f"--stretch: got auto, wanted full or a number, because {what} on one replica "
        "is a single micro-batch, and auto compares the gradients of at least two. Set "
        "a --virtual_batch_size of at most half the batch, or use two replicas."
    )
