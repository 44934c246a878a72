"""`Settings`, what the user asked for: one field for each flag of `train.py`."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user asked for.

    `train.py` defines the flags of the same names, their defaults and their meaning.
    `None` stands for a value that follows from the data set or the network; a `Plan`
    holds settings in which none is left.
    """

    mode: str
    run_dir: str | None
    dataset: str
    data_dir: str | None
    download: bool
    train_split: str | None
    validation_split: str | None
    train_examples: int
    image_key: str | None
    label_key: str | None
    image_size: int
    model: str | None
    batch_size: int | None
    batch_sizes: tuple[int, ...] | None
    small_batch_size: int | None
    virtual_batch_size: int | None
    lr_scaling: str | float
    stretch: str | float
    warmup_updates: int
    gradient_noise: str | float
    epochs: int | None
    learning_rate: float | None
    clipnorm: float | None
    l2: float | None
    l2_kernels_only: bool
    strategy: str
    replicas: int
    cluster: str
    cluster_port: int
    tpu: str | None
    micro_batch_size: int
    memory_budget: float
    precision: str
    jit: str
    seed: int
    seeds: int
    max_updates: int
    eval_every: int
    checkpoint_every: int
    weight_distance: bool
    noise_scale: bool
    profile: str | None
    directions: int
    tuner: str
    search: tuple[str, ...]
    trials: int
    trial_updates: int
    trial_samples: int
    lost_after: int

    def flagfile(self) -> str:
        """These settings as the text of a flagfile that runs them again."""
        lines = []
        for name, value in dataclasses.asdict(self).items():
            if name == "search":
                lines += [f"--search={one}" for one in value]
            elif value is not None:
                lines.append(f"--{name}={_flag_text(value)}")
        return "".join(f"{line}\n" for line in lines)


def _flag_text(value):
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
