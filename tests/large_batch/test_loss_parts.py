"""Micro-batches make the model's own update, whatever Keras divides a loss by."""

import dataclasses

import keras
import numpy as np
import pytest
from backend import IS_JAX, IS_TENSORFLOW, JIT_COMPILE, SLOW_ON_JAX
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from replicas import scope_of
from small_models import build

from gbn_keras import LargeBatchModel

if IS_TENSORFLOW:
    import tensorflow as tf

STEPS, CLASSES = 4, 3
BY_SIZE, BY_WEIGHT = "sum_over_batch_size", "mean_with_sample_weight"
# Losses on class numbers; all others are on distributions over the classes.
ON_NUMBERS = {
    "SparseCategoricalCrossentropy",
    "CategoricalGeneralizedCrossEntropy",
    "Ignoring",
    "CTC",
    "Circle",
}
# What no micro-batch knows: one value for a batch, or one that compares its examples.
OF_BATCHES = {"Dice", "Tversky", "Circle"}
SMOOTH = np.eye(CLASSES, dtype="float32") * 0.7 + 0.1
LOSSES = sorted({*dir(keras.losses), "Ignoring"} - {"Loss", "deserialize"})
LOSSES = [name for name in LOSSES if name[0].isupper()]


@dataclasses.dataclass(frozen=True)
class Output:
    """One output of a model, its loss and its weights."""

    loss: str
    reduction: str
    loss_weight: float
    is_sequence: bool
    # Axes of the sample weights.
    weights: tuple | None


def vector(loss, reduction="mean", weights=None):
    return Output(loss, reduction, 0.3, False, weights)


def sequence(loss, reduction="mean", weights=None):
    return Output(loss, reduction, 2.0, True, weights)


def some_outputs(weighted):
    def some(is_sequence):
        axes = [(1,), (STEPS,)] if is_sequence else [(), (1,)]
        return st.builds(
            Output,
            loss=st.sampled_from(LOSSES),
            reduction=st.sampled_from(["mean", BY_SIZE, BY_WEIGHT]),
            loss_weight=st.sampled_from([1.0, 0.3]),
            is_sequence=st.just(is_sequence),
            weights=st.sampled_from(axes) if weighted else st.none(),
        )

    return st.lists(st.booleans().flatmap(some), min_size=1, max_size=2)


# What Keras raises where a loss does not fit.
if IS_TENSORFLOW:
    REFUSALS = (ValueError, tf.errors.InvalidArgumentError)
else:
    REFUSALS = (ValueError, TypeError, RuntimeError)

# JAX compiles each operation for each shape if it runs eagerly, which takes longer.
EAGERLY = {"jit_compile": True} if IS_JAX else {"run_eagerly": True}


def loss_of(output):
    if output.loss == "Ignoring":
        return keras.losses.SparseCategoricalCrossentropy(
            ignore_class=0, reduction=output.reduction
        )
    return getattr(keras.losses, output.loss)(reduction=output.reduction)


def metric_of(output):
    if output.loss == "CTC":
        return []
    on_numbers = output.loss in ON_NUMBERS
    return ["sparse_categorical_accuracy" if on_numbers else "mse"]


def model_of(outputs, mask_zero, regularized):
    """A distribution over the classes for each output, or one at each step."""
    layers = keras.layers
    regularizer = keras.regularizers.L2(0.1) if regularized else None
    tokens = keras.Input((STEPS,), dtype="int32")
    embedded = layers.Embedding(5, 4, mask_zero=mask_zero)(tokens)
    found = []
    for name, output in zip("ab", outputs, strict=False):
        hidden = embedded
        if not output.is_sequence:
            hidden = layers.GlobalAveragePooling1D()(hidden)
        dense = layers.Dense(
            CLASSES,
            "softmax",
            kernel_regularizer=regularizer,
            activity_regularizer=regularizer,
            name=name,
        )
        found.append(dense(hidden))
    return keras.Model(tokens, found[0] if len(found) == 1 else found)


def data_of(outputs, examples, rng):
    """`(tokens, targets, weights)`."""
    tokens = rng.integers(0, 5, (examples, STEPS))
    targets, weights = [], []
    for output in outputs:
        shape = (examples, STEPS) if output.is_sequence else (examples,)
        numbers = rng.integers(0, CLASSES, shape)
        if output.loss == "CTC":
            numbers = rng.integers(1, CLASSES, (examples, 1))
        is_number = output.loss in ON_NUMBERS
        targets.append(numbers if is_number else SMOOTH[numbers])
        weights.append(None)
        if output.weights is not None:
            weights[-1] = rng.random((examples, *output.weights)).astype("float32")
    if len(outputs) == 1:
        return tokens, targets[0], weights[0]
    return tokens, targets, None if weights[0] is None else weights


def trained(model, outputs, data, replicas=1, **how):
    """Logs of an update, of an evaluation after it, and the weights."""
    losses = [loss_of(output) for output in outputs]
    several = len(outputs) > 1
    model.compile(
        keras.optimizers.SGD(0.1),
        losses if several else losses[0],
        loss_weights=[x.loss_weight for x in outputs] if several else None,
        weighted_metrics=[metric_of(output) for output in outputs],
        **how,
    )
    if replicas == 1:
        build(model, *keras.tree.map_structure(lambda values: values[:1], data[:2]))
    logs = model.train_on_batch(*data, return_dict=True)
    scores = model.test_on_batch(*data, return_dict=True)
    return logs, scores, model.get_weights()


def trained_in_parts(how_model, weights, outputs, data, size, replicas=1, **how):
    """As `trained`, in micro-batches on replicas."""
    with scope_of(replicas):
        inner = model_of(outputs, *how_model)
        inner.set_weights(weights)
        model = LargeBatchModel(inner, size)
        return trained(model, outputs, data, replicas, **how)


def assert_same(result, expected):
    if IS_JAX:  # Keras computes metrics of training without masks there.
        for logs, _, _ in (result, expected):
            for name in [name for name in logs if "loss" not in name]:
                logs.pop(name)
    for one, other in zip(result[:2], expected[:2], strict=True):
        assert list(one) == list(other)  # In this order.
        np.testing.assert_allclose([*one.values()], [*other.values()], rtol=1e-5)
    for one, other in zip(result[2], expected[2], strict=True):
        tolerance = 1e-5 * np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=tolerance)


some_update = given(
    outputs=st.booleans().flatmap(some_outputs),
    how_model=st.tuples(st.booleans(), st.booleans()),
    examples=st.integers(2, 9),
    size=st.integers(1, 4),
    replicas=st.sampled_from([1, 1, 2]),
    seed=st.integers(0, 99),
)
repeatably = settings(
    deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)


# What the losses are means over: outputs, `(examples of a replica, examples of a
# micro-batch, replicas)`, and whether the inputs are masked and the layers regularized.
# Each loss is in a case.
CASES = {
    "examples": ([vector("Huber")], (5, 2, 1)),
    "examples in equal parts": ([vector("Poisson", BY_SIZE, (1,))], (4, 2, 1)),
    "examples in one part": ([vector("LogCosh"), sequence("Hinge")], (3, 2, 1)),
    "examples on replicas": (
        [sequence("KLDivergence"), vector("SquaredHinge")],
        (4, 2, 2),
        "regularized",
    ),
    "weights": ([vector("CategoricalCrossentropy", BY_WEIGHT, ())], (5, 2, 1)),
    "weights in equal parts": (
        [vector("MeanSquaredError", BY_WEIGHT, (1,))],
        (4, 2, 1),
    ),
    "weights on replicas": (
        [sequence("CosineSimilarity", BY_WEIGHT, (STEPS,))],
        (4, 2, 2),
    ),
    "a mask": ([sequence("MeanAbsoluteError")], (5, 2, 1), "masked"),
    "a mask of the loss on replicas": ([vector("Ignoring", BY_SIZE)], (4, 2, 2)),
    "masked weights": (
        [sequence("CategoricalHinge", BY_WEIGHT, (STEPS,))],
        (4, 1, 1),
        "masked",
    ),
    "weights, and examples on replicas": (
        [
            vector("BinaryCrossentropy", BY_WEIGHT, ()),
            sequence("MeanAbsolutePercentageError", "mean", (1,)),
        ],
        (4, 2, 2),
    ),
    "a mask, and examples of layers": (
        [sequence("BinaryFocalCrossentropy")],
        (4, 2, 1),
        *("masked", "regularized"),
    ),
    "a mask, and weights": (
        [
            sequence("SparseCategoricalCrossentropy", "mean", (STEPS,)),
            vector("CategoricalFocalCrossentropy", BY_WEIGHT, ()),
        ],
        (5, 2, 1),
        "masked",
    ),
    "masked weights, and examples of layers on replicas": (
        [sequence("MeanSquaredLogarithmicError", BY_WEIGHT, (1,))],
        (4, 2, 2),
        *("masked", "regularized"),
    ),
    "different weights": (
        [
            sequence("CategoricalGeneralizedCrossEntropy", BY_WEIGHT, (1,)),
            vector("Ignoring", BY_WEIGHT, (1,)),
        ],
        (4, 2, 1),
    ),
    "CTC": ([sequence("CTC")], (5, 2, 1)),
    "Dice": ([sequence("Dice")], (4, 2, 1)),
    "Tversky": ([vector("Tversky"), sequence("Tversky")], (4, 2, 2)),
    "Circle": ([vector("Circle")], (4, 2, 1)),
}


# JAX takes seconds to compile each.
SOME_ON_JAX = ("weights", "a mask, and examples of layers", "Dice")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case, id=name, marks=SLOW_ON_JAX if name not in SOME_ON_JAX else []
        )
        for name, case in CASES.items()
    ],
)
def test_a_loss_is_the_whole_batchs_or_refused(case):
    outputs, numbers, *how = case
    scope_of(numbers[-1])  # Other backends have no replicas.
    how_model = "masked" in how, "regularized" in how
    assert check_loss(outputs, how_model, *numbers, seed=0)


@pytest.mark.slow
@some_update
@settings(repeatably, max_examples=80)
def test_any_loss_is_the_whole_batchs_or_refused(**case):
    check_loss(**case)


def check_loss(outputs, how_model, examples, size, replicas, seed):
    """Whether Keras takes the losses. If it does, their means must be the same."""
    data = data_of(outputs, examples * replicas, np.random.default_rng(seed))
    model = model_of(outputs, *how_model)
    before = model.get_weights()
    try:
        expected = trained(model, outputs, data, **EAGERLY)
    except REFUSALS:
        return False
    try:
        result = trained_in_parts(
            how_model, before, outputs, data, size, replicas, **EAGERLY
        )
    except ValueError as error:
        assert "Received: " in str(error)
        losses = {output.loss for output in outputs}
        # Keras gives as many steps as there are examples each other's mask.
        assert losses & OF_BATCHES or ("CTC" in losses and "mask" in str(error))
    else:
        assert_same(result, expected)
    return True


SEQUENCE = Output("MeanSquaredError", "mean", 1.0, True, None)
IGNORING = Output("Ignoring", "mean", 0.3, True, None)
VECTOR = Output("BinaryCrossentropy", "mean_with_sample_weight", 0.5, False, ())
BY_STEP = Output("MeanAbsoluteError", "mean_with_sample_weight", 1.0, True, (STEPS,))


@pytest.mark.parametrize(
    "outputs, replicas, jit",
    [
        ([SEQUENCE], 1, False),
        pytest.param([SEQUENCE, IGNORING], 1, JIT_COMPILE[-1], marks=pytest.mark.slow),
        pytest.param([IGNORING], 2, True, marks=pytest.mark.cluster),
        pytest.param([VECTOR, BY_STEP], 2, False, marks=pytest.mark.cluster),
    ],
)
def test_compiled_too(outputs, replicas, jit):
    how_model = (True, True)
    data = data_of(outputs, 22, np.random.default_rng(0))
    model = model_of(outputs, *how_model)
    before = model.get_weights()
    expected = trained(model, outputs, data, jit_compile=False)
    result = trained_in_parts(
        how_model, before, outputs, data, 4, replicas, jit_compile=jit
    )
    assert_same(result, expected)


def test_a_batch_that_is_masked_altogether_moves_what_is_regularized():
    data = np.zeros((4, STEPS), int), np.ones((4, STEPS, CLASSES)), None
    model = model_of([SEQUENCE], True, True)
    before = model.get_weights()
    expected = trained(model, [SEQUENCE], data, **EAGERLY)
    result = trained_in_parts((True, True), before, [SEQUENCE], data, 2, **EAGERLY)
    assert_same(result, expected)


class OwnReduction(keras.losses.Loss):
    """Takes a mean of its own."""

    def __call__(self, y_true, y_pred, sample_weight=None):
        """A mean of the batch."""
        return keras.ops.mean(keras.ops.square(y_pred))


@pytest.mark.parametrize(
    "loss, message",
    [
        (OwnReduction(name="own"), "Received: own, which has its own __call__"),
        (lambda y, p: keras.ops.mean(p), r"which gives the shape \(\)"),
        (lambda y, p: keras.ops.mean(p, axis=0), r"which gives the shape \(3,\)"),
        ("circle", "Received: circle, which compares"),
    ],
)
def test_a_loss_of_the_batch_is_refused_by_name(loss, message):
    dense = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model = LargeBatchModel(dense, 3)
    model.compile("sgd", loss, **EAGERLY)
    before = dense.get_weights()
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(np.ones((9, 2)), np.ones(9))
    np.testing.assert_array_equal(before[0], dense.get_weights()[0])


def test_weights_that_keras_would_align_with_another_axis_are_refused():
    """With as many steps as examples it would weigh steps by examples' weights."""
    outputs = [dataclasses.replace(SEQUENCE, weights=())]
    data = data_of(outputs, STEPS, np.random.default_rng(0))
    before = model_of(outputs, False, False).get_weights()
    with pytest.raises(ValueError, match=r"shape \(2,\) for values of shape \(2, 4\)"):
        trained_in_parts((False, False), before, outputs, data, 2, **EAGERLY)
