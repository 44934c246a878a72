"""What the settings ask of the machine: which micro-batches, and what cannot be."""

import math

from gbn_keras.arguments import nearest_multiples
from gbn_keras.shares import replicas_communicate
from gbn_keras.training.errors import UsageError
from gbn_keras.training.settings import Settings


def check_machine(settings: Settings, replicas: int) -> None:
    """Raises a `UsageError` for settings that no machine could use."""
    batch, ghost = settings.batch_size, settings.virtual_batch_size
    if replicas > 1 and batch % replicas:
        raise UsageError(
            f"--batch_size: batch {batch} on {replicas} replicas must be a multiple of "
            f"{replicas} to split evenly into shares. Choose "
            f"{nearest_multiples(batch, replicas)}."
        )
    if replicas_communicate(batch, ghost, replicas) and settings.jit == "on":
        what = "plain batch normalization over"
        if ghost:
            what = f"ghosts of {ghost} that are cut by"
        raise UsageError(
            f"--jit: got on, wanted auto or off, because {what} {replicas} replicas "
            "cannot be compiled: they communicate in the middle. Leave it out."
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
    share = batch // replicas
    compares = _comparing_flag(settings)
    if ghost and replicas_communicate(batch, ghost, replicas):
        _check_cut_ghosts(settings, share, replicas, compares)
        return share
    if compares and replicas == 1:
        most = _half(settings, share, ghost, *compares)
        if (settings.micro_batch_size or most) > most:
            name, value, _ = compares
            raise UsageError(
                f"--micro_batch_size: got {settings.micro_batch_size}, wanted at most "
                f"{most} with --{name}={value}, which compares the gradients of at "
                "least two micro-batches. Lower it, or leave it out."
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


def _check_cut_ghosts(settings, share, replicas, compares):
    """Refuses what shares with parts of ghosts cannot do."""
    ghost = settings.virtual_batch_size
    why = f"because {replicas} replicas of {share} examples cut ghosts of {ghost}"
    if settings.noise_scale and not compares:
        compares = "noise_scale", True, False
    if compares:
        name, value, others = compares
        raise UsageError(
            f"--{name}: got {value}, wanted {others}, {why}, and {value} compares the "
            "gradients of whole ghosts. Choose smaller ghosts, a larger batch or fewer "
            "replicas."
        )
    if settings.micro_batch_size and share >= 2 * settings.micro_batch_size:
        raise UsageError(
            f"--micro_batch_size: got {settings.micro_batch_size}, wanted {share} or "
            f"0, {why}. A ghost can be cut by replicas, not by micro-batches. Leave it "
            "out."
        )
    # A TPU compiles one program for all replicas.
    if settings.strategy == "tpu" and ghost % share:
        raise UsageError(
            f"--virtual_batch_size: got {ghost}, wanted a multiple or a divisor of the "
            f"{share} examples of a replica with --strategy=tpu. Change it or "
            "--batch_size."
        )


def _comparing_flag(settings):
    """A flag that needs two micro-batches: name, value, and other values."""
    if settings.stretch == "auto":
        return "stretch", "auto", "full or a number"
    if settings.second_moment == "small_batch":
        return "second_moment", "small_batch", "batch"
    return None


def _half(settings, share, ghost, name, value, others):
    """The whole ghosts in half of a share: with them, it has two micro-batches."""
    if settings.batch_size == settings.small_batch_size:
        return share  # Then there is nothing to find out.
    if ghost and share >= 2 * ghost:
        return share // ghost // 2 * ghost
    what = f"one ghost of {share}" if ghost else "plain batch normalization"
    raise UsageError(
        f"--{name}: got {value}, wanted {others}, because {what} on one replica is a "
        f"single micro-batch, and {value} compares the gradients of at least two. Set "
        "a --virtual_batch_size of at most half the batch, or use two replicas."
    )
