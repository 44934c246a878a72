"""The trainings of the paper's Table 1: arms, regimes and what they are made of."""

import dataclasses
import functools

import keras

from gbn_keras import L2SGD, REGIMES, GhostBatchNormalization, Regime, RegimeAdaptation
from gbn_keras.networks import find_network

# The program's: PyTorch's defaults, which the published networks use.
_NORMALIZATION = {"momentum": 0.9, "epsilon": 1e-5}

# What each arm has of scaled rate, ghosts and stretched regime. SB has the small batch.
ARMS = {
    "SB": (False, False, False),
    "LB": (False, False, False),
    "+LR": (True, False, False),
    "+GBN": (True, True, False),
    "+RA": (True, True, True),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """One training.

    Attributes:
        network: Name of the network, as `find_network` takes it.
        arm: One of `ARMS`.
        seed: Seed of weights, order, augmentation and dropout.
        regime: The small batch's regime.
        large_batch_size: The batch size of all arms but SB.
        precision: Keras's dtype policy.
        micro_batch_size: Examples that go through the network at once in the arms with
            ghosts. 0: the most that fit.
    """

    network: str
    arm: str
    seed: int
    regime: Regime
    large_batch_size: int = 4096
    precision: str = "float32"
    micro_batch_size: int = 0

    @property
    def batch_size(self) -> int:
        """Examples of an update."""
        is_small = self.arm == "SB"
        return self.regime.small_batch_size if is_small else self.large_batch_size

    @property
    def stretch(self) -> float:
        """How many times more epochs than the regime."""
        ratio = self.batch_size / self.regime.small_batch_size
        return ratio if ARMS[self.arm][2] else 1.0

    @property
    def ghost_size(self) -> int | None:
        """Examples of a ghost; `None` for plain batch normalization."""
        return self.regime.small_batch_size if ARMS[self.arm][1] else None

    @property
    def name(self) -> str:
        """A name for files."""
        own = f"{self.network}_{self.arm.strip('+')}_seed{self.seed}"
        more = "" if self.precision == "float32" else f"_{self.precision}"
        momentum = self.regime.momentum
        if momentum != _regime(self.network).momentum:
            more += f"_momentum{momentum:g}"
        return own + more

    def model(self, image_shape: tuple[int, ...]) -> keras.Model:
        """The network with new weights, which follow from the seed."""
        keras.config.set_dtype_policy(self.precision)
        keras.utils.set_random_seed(self.seed)
        if self.ghost_size:
            kind = functools.partial(GhostBatchNormalization, self.ghost_size)
        else:
            kind = keras.layers.BatchNormalization
        build, _ = find_network(self.network)
        return build(image_shape, 10, functools.partial(kind, **_NORMALIZATION))

    def optimizer(self, examples: int) -> L2SGD:
        """The optimizer of a training with so many examples."""
        regime = self.regime
        rate = RegimeAdaptation(
            regime.learning_rate_schedule(examples),
            regime.small_batch_size,
            self.batch_size,
            lr_scaling="sqrt" if ARMS[self.arm][0] else "none",
            stretch=self.stretch,
        )
        return L2SGD(
            rate,
            l2=regime.l2_schedule(examples),
            momentum=regime.momentum,
            global_clipnorm=regime.clipnorm or None,
        )


def task_of(
    network: str, arm: str, seed: int, *, tiny: bool, momentum: float | None, **more
) -> Task:
    """The task with the network's own regime.

    Args:
        network: Name of the network.
        arm: One of `ARMS`.
        seed: Seed of the training.
        tiny: Whether to train for two epochs, with batches of 64 and 16.
        momentum: Momentum instead of the regime's.
        **more: Fields of `Task`.
    """
    regime = _regime(network)
    if momentum is not None:
        regime = dataclasses.replace(regime, momentum=momentum)
    if tiny:
        regime = dataclasses.replace(regime.with_epochs(2), small_batch_size=16)
        more = {"large_batch_size": 64, **more}
    return Task(network, arm, seed, regime, **more)


def _regime(network):
    return REGIMES[find_network(network)[1]]
