"""`SearchSpace`: which flags a search varies, and over which values."""

import dataclasses

import keras_tuner

from gbn_keras.training.errors import UsageError
from gbn_keras.training.planner import Planner
from gbn_keras.training.settings import Settings

# How a flag's values are written, and how a range of them is searched.
_SIZES = ("batch_size", "virtual_batch_size")
_NUMBERS = ("learning_rate", "l2")
_TEXTS = ("lr_scaling", "stretch", "gradient_noise")
_LINEAR = ("gradient_noise",)  # All others over orders of magnitude.

_EXAMPLES = "as batch_size:64..512, learning_rate:0.01..1 or stretch:1,4,full"


@dataclasses.dataclass(frozen=True)
class _Range:
    low: float
    high: float


class SearchSpace:
    """The values that a keras-tuner search may give to flags.

    Each flag is declared by its name and its values: a list, as
    `lr_scaling:none,sqrt,linear`, or a range with its ends, as `learning_rate:0.01..1`.
    Ranges are searched by orders of magnitude, gradient noise linearly; a range of
    sizes has the lower end, twice as much, and so on. To search are the batch size, the
    virtual batch size, the rate, its scaling, the stretch, the gradient noise and L2.

    A value that does not suit one batch size (a ghost larger than it, say) is tried
    with the other ones only.

    Args:
        declarations: One for each flag.
        settings: What all trainings share.
        planner: Of the trials.

    Attributes:
        batch_sizes: Those that are tried; the settings' own, if none is declared.

    Raises:
        UsageError: If a declaration cannot be read, or has values that suit no batch
            size.
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
                f"to vary, {_EXAMPLES}."
            )
        # First, as the others' values depend on it.
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
        """The settings with these hyperparameters, numbers rounded to four digits."""
        batch_size = hp.values.get("batch_size")
        chosen = {
            name: hp.values.get(name, hp.values.get(_name_at(name, batch_size)))
            for name in self.flags
        }
        return dataclasses.replace(
            self._settings,
            **{
                # Legible in tables and flagfiles.
                name: float(f"{value:.4g}") if isinstance(value, float) else value
                for name, value in chosen.items()
            },
        )

    def _suitable(self, name, values):
        """By batch size, those of the values that can be trained with."""
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
            # What it is does not matter to the others.
            settings = dataclasses.replace(settings, virtual_batch_size=None)
        self._planner.plan(dataclasses.replace(settings, **values))


def _name_at(name, batch_size):
    """Of a hyperparameter whose values depend on the batch size.

    keras-tuner's grid search wants one name for one list of values.
    """
    return f"{name} at batch {batch_size}"


def _parse(declaration):
    """`(flag, values)`, where the values are a tuple or a range."""
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
