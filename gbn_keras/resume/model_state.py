"""What a training changes: variables and generators, as named arrays."""

import keras
import ml_dtypes  # noqa: F401 - Teaches numpy the names of bfloat16 and its kin.
import numpy as np

if keras.backend.backend() == "torch":
    import torch


_GENERATOR = "generator"


class Unfit(ValueError):
    """Arrays are of another model.

    Args:
        path: Path of the variable that is missing or has another shape.
    """

    def __init__(self, path: str):
        super().__init__(f"{path} is missing or has another shape")


def variables_of(model: keras.Model) -> dict[str, list]:
    """The variables of a compiled and built model in training, by kind.

    The seeds of random layers are among the model's.
    """
    # A `LargeBatchModel` has these.
    moments = getattr(model, "gradient_moments", None)
    progress = getattr(model, "regime_progress", None)
    return {
        "model": model.variables,
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
        "moments": moments.variables if moments else [],
        "progress": progress.variables if progress else [],
    }


def arrays_of(model: keras.Model) -> dict[str, np.ndarray]:
    """The values of all variables, by name. Call it between two updates.

    With a `tf.distribute` strategy, they are the first replica's.
    """
    if keras.backend.backend() == "jax":
        # In training, Keras keeps the values elsewhere. It takes them up again.
        model.jax_state_sync()
    return {
        name_of(kind, place): keras.ops.convert_to_numpy(_first(model, variable))
        for kind, variables in variables_of(model).items()
        for place, variable in enumerate(variables)
    }


def _first(model, variable):
    if keras.backend.backend() != "tensorflow":
        return variable
    strategy = model.distribute_strategy
    return strategy.experimental_local_results(variable.value)[0]


def restore(model: keras.Model, arrays: dict, *kinds: str) -> None:
    """Gives the variables of these kinds the values of `arrays_of`.

    Raises:
        Unfit: If the arrays are of another model.
    """
    for kind in kinds:
        for place, variable in enumerate(variables_of(model)[kind]):
            variable.assign(value_of(arrays, name_of(kind, place), variable))


def generators() -> dict[str, np.ndarray]:
    """The states of PyTorch's own generators, by name; none on other backends.

    Keras's layers have seeds, which are variables. But on PyTorch, `Dropout` without a
    `seed` draws from these generators.
    """
    if keras.backend.backend() != "torch":
        return {}
    states = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
    return {name_of(_GENERATOR, i): state.numpy() for i, state in enumerate(states)}


def restore_generators(arrays: dict) -> None:
    """Gives PyTorch's generators the states of `generators`."""
    for place, name in enumerate(generators()):
        state = torch.from_numpy(arrays[name])
        if place:
            torch.cuda.set_rng_state(state, place - 1)
        else:
            torch.set_rng_state(state)


def name_of(kind: str, place: int) -> str:
    """The name of the array of a variable, by its kind and its place there."""
    return f"{kind}_{place}"


def value_of(arrays: dict[str, np.ndarray], name: str, variable) -> np.ndarray:
    """The array of this name, for this variable.

    Raises:
        Unfit: If it is missing or has another shape.
    """
    value = arrays.get(name)
    if value is None or value.shape != tuple(variable.shape):
        raise Unfit(variable.path)
    if value.dtype.kind == "V":  # bfloat16: numpy only knew its size.
        value = value.view(np.dtype(keras.backend.standardize_dtype(variable.dtype)))
    return value
