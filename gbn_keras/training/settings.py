"""`Settings`: the user's settings, one field for each flag of `train.py`."""

import dataclasses

# Marks in a field's metadata.
_FREE = "free"  # Does not affect what a run computes, so a resumed run may change it.
_AROUND = "around"  # Says how to search or where to write, not how to train.
_COMPARED = "compared"  # TensorBoard compares runs by it.
# Flagfiles leave out this value: runs from before the flag have it, and resume.
_OF_OLD = "of_old"


def _is(*marks, **values):
    return dataclasses.field(metadata=dict.fromkeys(marks, True) | values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The user's settings.

    The flags of `train.py` have the same names and define the defaults and the meaning.
    `None` is a value that the data set or the network decides. A `Plan` holds
    `ResolvedSettings`, in which these values are filled in.
    """

    mode: str
    run_dir: str | None = _is(_FREE, _AROUND)
    dataset: str = _is(_COMPARED)
    data_dir: str | None = _is(_FREE)
    download: bool = _is(_FREE)
    train_split: str | None
    validation_split: str | None
    train_examples: int
    image_key: str | None
    label_key: str | None
    image_size: int
    model: str | None = _is(_COMPARED)
    batch_size: int | None = _is(_COMPARED)
    batch_sizes: tuple[int, ...] | None
    small_batch_size: int | None = _is(_COMPARED)
    virtual_batch_size: int | None = _is(_COMPARED)
    lr_scaling: str | float = _is(_COMPARED)
    stretch: str | float = _is(_COMPARED)
    warmup_updates: int = _is(_COMPARED)
    gradient_noise: str | float = _is(_COMPARED)
    epochs: int | None = _is(_COMPARED)
    learning_rate: float | None = _is(_COMPARED)
    clipnorm: float | None = _is(_COMPARED)
    l2: float | None = _is(_COMPARED)
    l2_kernels_only: bool
    optimizer: str = _is(_COMPARED, of_old="sgd")
    second_moment: str = _is(_COMPARED, of_old="batch")
    weight_decay: float | None = _is(_COMPARED)
    strategy: str = _is(_FREE)
    replicas: int = _is(_FREE)
    cluster: str = _is(_FREE)
    cluster_port: int = _is(_FREE)
    tpu: str | None = _is(_FREE)
    micro_batch_size: int = _is(_FREE)
    memory_budget: float = _is(_FREE)
    precision: str = _is(_COMPARED)
    jit: str
    seed: int = _is(_COMPARED)
    seeds: int = _is(_FREE, _AROUND)
    max_updates: int
    eval_every: int = _is(_FREE)
    checkpoint_every: int = _is(_FREE)
    weight_distance: bool
    noise_scale: bool
    profile: str | None = _is(_FREE)
    directions: int
    tuner: str = _is(_AROUND)
    search: tuple[str, ...] = _is(_AROUND)
    trials: int = _is(_FREE, _AROUND)
    trial_updates: int = _is(_AROUND)
    trial_samples: int = _is(_AROUND)
    lost_after: int = _is(_FREE, _AROUND)
    probe_updates: int | None = _is(_AROUND)
    link_gbytes: float | None = _is(_FREE, _AROUND)
    cost_per_hour: float | None = _is(_FREE, _AROUND)

    def flagfile(self) -> str:
        """The text of a flagfile with these settings."""
        lines = []
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if name == "search":
                lines += [f"--search={one}" for one in value]
            elif value is not None and value != field.metadata.get(_OF_OLD):
                lines.append(f"--{name}={_flag_text(value)}")
        return "".join(f"{line}\n" for line in lines)


class ResolvedSettings(Settings):
    """Settings with all values filled in, as a `Plan` holds them.

    The fields are the same. Those that a user may leave out, or give as a word, have
    their value here.
    """

    run_dir: str
    model: str
    batch_size: int
    small_batch_size: int
    virtual_batch_size: int
    stretch: float | str  # `auto` stays: the training itself finds the number.
    gradient_noise: float
    epochs: int
    learning_rate: float
    clipnorm: float
    l2: float


def _names(mark):
    return tuple(f.name for f in dataclasses.fields(Settings) if mark in f.metadata)


# Flags that say where files are, which devices compute, what is recorded and when, and
# how many trainings a study or a search has.
FREE_TO_CHANGE = _names(_FREE)

# Flags of a study or a search as a whole, not of each of its trainings.
AROUND_A_TRAINING = _names(_AROUND)

# Flags that TensorBoard's HParams tab shows.
COMPARED = _names(_COMPARED)


def _flag_text(value):
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
