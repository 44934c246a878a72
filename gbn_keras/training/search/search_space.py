"""`SearchSpace`: the flags that a search varies, and their values."""

import dataclasses

import keras_tuner

from gbn_keras.training.errors import UsageError
from gbn_keras.training.planner import Planner
from gbn_keras.training.settings import Settings

# The form of each flag's values, and how a range of them is searched.
_SIZES = ("batch_size", "virtual_batch_size")
_NUMBERS = ("learning_rate", "l2")
_TEXTS = ("lr_scaling", "stretch", "gradient_noise")
_LINEAR = ("gradient_noise",)  # All others are searched logarithmically.

_EXAMPLES = "for example batch_size:64..512, learning_rate:0.01..1 or stretch:1,4,full"


@dataclasses.dataclass(frozen=True)
class _Range:
    low: float
    high: float


class SearchSpace:
    """The values that a keras-tuner search tries for flags.

    A declaration has the name of a flag and its values: a list, such as
    `lr_scaling:none,sqrt,linear`, or a range with both ends, such as
    `learning_rate:0.01..1`. Ranges are searched logarithmically, but gradient noise
    linearly. A range of sizes has the lower end, its double, and so on. You can search
    the batch size, the virtual batch size, the rate, its scaling, the stretch, the
    gradient noise and L2.

    If a value does not suit a batch size (for example a ghost larger than the batch),
    it is tried only with the other batch sizes.

    Args:
        declarations: Declarations, one for each flag.
        settings: Settings that all trials share.
        planner: Planner of the trials.

    Attributes:
        batch_sizes: Batch sizes to try: the declared ones, or else the settings' own.

    Raises:
        UsageError: If a declaration cannot be read, or if a value suits no batch size.
    """

    def __init__(
        self,
        declarations: tuple[str, ...],
        settings: Settings,
        planner: Planner,
    ):
        self.flags = dict(map(_parse, declarations))
        if not self.flags or len(self.flags) < len(declarations):
            raise UsageError(
                f"--search: got {' '.join(declarations)!r}, wanted one for each flag "
                f"to search, {_EXAMPLES}."
            )
        # It comes first, because the other flags' values depend on it.
        sizes = self.flags.pop("batch_size", None)
        self.flags = {"batch_size": sizes, **self.flags} if sizes else self.flags
        self._settings, self._planner = settings, planner
        self.batch_sizes = sizes or (settings.batch_size,)
        self._by_batch_size = {
            name: self._suitable(name, values)
            for name, values in self.flags.items()
            if name != "batch_size"
        }
        for size in self.batch_sizes:
            self._plan(batch_size=size)

    def declare(self, hp: keras_tuner.HyperParameters) -> None:
        """Declares the hyperparameters."""
        if "batch_size" in self.flags:
            hp.Choice("batch_size", list(self.batch_sizes))
        for name, values in self._by_batch_size.items():
            if isinstance(self.flags[name], _Range):
                low, high = dataclasses.astuple(self.flags[name])
                sampling = "linear" if name in _LINEAR else "log"
                hp.Float(name, low, high, sampling=sampling)
            elif len(set(values.values())) == 1:
                hp.Choice(name, list(next(iter(values.values()))))
            else:
                for size, suitable in values.items():
                    with hp.conditional_scope("batch_size", [size]):
                        hp.Choice(_name_at(name, size), list(suitable))

    def settings(self, hp: keras_tuner.HyperParameters) -> Settings:
        """The settings with these hyperparameters, rounded to four digits."""
        batch_size = hp.values.get("batch_size")
        chosen = {
            name: hp.values.get(name, hp.values.get(_name_at(name, batch_size)))
            for name in self.flags
        }
        return dataclasses.replace(
            self._settings,
            **{
                # Rounded, so that tables and flagfiles are easy to read.
                name: float(f"{value:.4g}") if isinstance(value, float) else value
                for name, value in chosen.items()
            },
        )

    def _suitable(self, name, values):
        """For each batch size, the values that it can be trained with."""
        if isinstance(values, _Range):
            for size in self.batch_sizes:
                for end in dataclasses.astuple(values):
                    self._plan(batch_size=size, **{name: end})
            return {}
        suitable, refused = {}, {}
        for size in self.batch_sizes:
            suitable[size] = ()
            for value in values:
                try:
                    self._plan(batch_size=size, **{name: value})
                    suitable[size] += (value,)
                except UsageError as error:
                    refused[value] = error
            if not suitable[size]:
                raise refused[values[-1]]
        for value, error in refused.items():
            if not any(value in found for found in suitable.values()):
                raise error
        return suitable

    def _plan(self, **values):
        settings = self._settings
        if "virtual_batch_size" in self.flags:
            # Other flags do not depend on its value.
            settings = dataclasses.replace(settings, virtual_batch_size=None)
        self._planner.plan(dataclasses.replace(settings, **values))


def _name_at(name, batch_size):
    """The name of a hyperparameter whose values depend on the batch size.

    keras-tuner's grid search needs a separate name for each list of values.
    """
    return f"{name} at batch {batch_size}"


def _parse(declaration):
    """The pair `(flag, values)`. The values are a tuple or a range."""
    name, _, text = (part.strip() for part in declaration.partition(":"))
    try:
        if name not in (*_SIZES, *_NUMBERS, *_TEXTS) or not text:
            raise ValueError
        low, is_range, high = text.partition("..")
        if is_range:
            values = _range(name, low, high)
        else:
            number = {**dict.fromkeys(_SIZES, int), **dict.fromkeys(_NUMBERS, float)}
            values = tuple(
                number.get(name, str)(value.strip()) for value in text.split(",")
            )
    except ValueError as error:
        raise UsageError(
            f"--search: got {declaration!r}, wanted one of "
            f"{', '.join((*_SIZES, *_NUMBERS, *_TEXTS))} and its values, {_EXAMPLES}."
        ) from error
    return name, values


def _range(name, low, high):
    if name in _SIZES:
        sizes, high = [int(low)], int(high)
        if not 0 < sizes[0] < high:
            raise ValueError
        while 2 * sizes[-1] <= high:
            sizes.append(2 * sizes[-1])
        return tuple(sizes)
    low, high = float(low), float(high)
    if not (0 <= low < high < float("inf")) or (low == 0 and name not in _LINEAR):
        raise ValueError
    return _Range(low, high)
