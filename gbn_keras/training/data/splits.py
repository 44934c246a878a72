"""Finds the examples of a data set for training and those for validation."""

import dataclasses
import os
from typing import NamedTuple

from gbn_keras.training.errors import UsageError, first_line

_LANGUAGE = "Use tensorflow-datasets' language: train, train[:90%], train+validation."

_DIVIDE = (
    "Divide {}, for example with --train_split=train[:90%] "
    "--validation_split=train[90%:]."
)


class Part(NamedTuple):
    """Consecutive examples of a file."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int

    @property
    def stop(self) -> int:
        """The index of the first example after these."""
        return self.skip + self.take


@dataclasses.dataclass(frozen=True)
class Split:
    """Some examples of a data set, in the order of its files.

    Attributes:
        name: Name in tensorflow-datasets' split language.
        parts: Parts of files that hold the examples.
    """

    name: str
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return sum(part.take for part in self.parts)

    def first(self, examples: int) -> "Split":
        """A split with only the first `examples` examples."""
        parts = []
        for part in self.parts:
            take = min(part.take, examples)
            examples -= take
            if take:
                parts.append(part._replace(take=take))
        return Split(self.name, tuple(parts))

    def common(self, other: "Split") -> int:
        """Number of examples that are also in the other split."""
        return sum(
            max(
                0,
                min(one.skip + one.take, two.skip + two.take) - max(one.skip, two.skip),
            )
            for one in self.parts
            for two in other.parts
            if one.filename == two.filename
        )


def training_and_validation(
    name: str,
    known,
    train_split: str | None = None,
    validation_split: str | None = None,
    train_examples: int = 0,
) -> tuple[Split, Split]:
    """The training split and the validation split, which have no example in common.

    Args:
        name: Name of the data set.
        known: tensorflow-datasets' splits of the data set.
        train_split: Training examples. Default: `train`.
        validation_split: Validation examples. Default: `validation`, or else `test`.
        train_examples: Number of training examples to use, from the first on. 0: all.

    Raises:
        UsageError: If the data set does not have a split, or if a split is empty or has
            fewer examples, or if the two overlap.
    """
    default = next((one for one in ("validation", "test") if one in known), None)
    has_training = train_split or "train" in known
    if not (has_training and (validation_split or default)):
        wanted = "validation or test" if has_training else "train"
        raise UsageError(
            f"--dataset: got {name} with the splits {_names(known)}, wanted {wanted}. "
            f"{_DIVIDE.format('what there is')}"
        )
    train = _split(name, known, "train_split", train_split, "train")
    validation = _split(name, known, "validation_split", validation_split, default)
    check_enough(name, len(train), train_examples)
    if train_examples:
        train = train.first(train_examples)
    if common := train.common(validation):
        flag = "validation_split" if validation_split else "train_split"
        raise UsageError(
            f"--{flag}: got {validation.name} of {name} for validation and "
            f"{train.name} for training with {common:,} examples in common, wanted "
            f"none. {_DIVIDE.format('them')}"
        )
    return train, validation


def check_enough(name: str, examples: int, train_examples: int) -> None:
    """Raises a UsageError if there are fewer training examples than wanted."""
    if not 0 <= train_examples <= examples:
        raise UsageError(
            f"--train_examples: got {train_examples}, wanted at most {examples}, the "
            f"training examples of {name}, or 0 for all. Lower it."
        )


def _split(name, known, flag, text, default):
    is_named, text = bool(text), text or default
    try:
        info = known[text]
        instructions = info.file_instructions
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"--{flag}: got {text!r}, wanted examples of {name}, which has "
            f"{_names(known)} ({first_line(error)}). {_LANGUAGE}"
        ) from error
    split = Split(text, tuple(_part(one) for one in instructions if one.take))
    if info.num_examples < 1:
        raise UsageError(
            f"--{flag if is_named else 'dataset'}: got {text} of {name} with 0 "
            "examples, wanted at least 1. Take more of it, prepare the data again, or "
            "use another data set."
        )
    return split


def _part(instruction):
    skip, take = instruction.skip, instruction.take
    if take < 0:  # The rest of the file.
        take = instruction.examples_in_shard - skip
    path = os.fspath(instruction.filename)
    return Part(path, skip, take, instruction.examples_in_shard)


def _names(known):
    return ", ".join(known) or "none"
