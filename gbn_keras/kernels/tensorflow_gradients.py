"""Gradients of one's own, in graphs of TensorFlow that can be forgotten.

`tf.custom_gradient` registers a function for each of its calls in a graph, and never
forgets it: with the function it keeps the graph, and all that this holds. Memory grows
with every model that is trained. Here a rule is registered once, for whatever graphs it
is used in, and knows none of them.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import tensorflow as tf

from gbn_keras._tensorflow_internals import record_gradient

_numbers = itertools.count()


def with_gradient(rule, outputs, operands, saved=()):
    """The outputs, with a gradient by the operands of which `rule` knows the formula.

    Args:
        rule: `rule(upstream, *operands, *saved)` gives the gradients by the operands.
            It is kept for good, so it holds no tensors; equal rules are kept once.
        outputs: A tensor.
        operands: The tensors from which it is computed.
        saved: Tensors that the rule needs besides.
    """
    tensors = [outputs, *operands, *saved]
    gradient = _GradientOfIdentity(rule, len(saved))
    if tf.executing_eagerly():
        outputs = tf.identity(outputs)
    else:
        # For gradients that are taken of the graph, then or later.
        with outputs.graph.gradient_override_map({"IdentityN": registered(gradient)}):
            outputs = tf.identity_n(tensors)[0]
    # For a tape, which knows no names.
    record_gradient(
        "GhostBatches", [outputs], tensors, functools.partial(gradient, tensors)
    )
    return outputs


@dataclasses.dataclass(frozen=True)
class _GradientOfIdentity:
    """By the tensors of `with_gradient`, or those of an operation on them."""

    rule: Callable
    number_saved: int

    def __call__(self, tensors, upstream, *_):
        tensors = getattr(tensors, "inputs", tensors)
        by_operands = self.rule(upstream, *tensors[1:])
        return [None, *by_operands, *(None for _ in range(self.number_saved))]


@functools.cache
def registered(gradient) -> str:
    """The name under which TensorFlow finds a gradient.

    Args:
        gradient: `gradient(operation, *upstreams)` gives those by the operation's
            inputs. It is kept for good, as in `with_gradient`.
    """
    name = f"GbnKerasGradient{next(_numbers)}"
    tf.RegisterGradient(name)(gradient)
    return name
