"""Custom gradients in TensorFlow graphs that do not leak memory.

`tf.custom_gradient` registers a function for each of its calls in a graph and keeps it
forever. The function keeps the graph and everything in it, so memory grows with every
model you train. Here, a rule is registered once for all graphs and refers to none of
them.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import tensorflow as tf

from gbn_keras._tensorflow_internals import record_gradient

_numbers = itertools.count()


def with_gradient(rule, outputs, operands, saved=()):
    """The outputs, with a gradient by the operands that `rule` computes.

    Args:
        rule: Function `rule(upstream, *operands, *saved)` that gives the gradients by
            the operands. It is kept forever, so it must not hold tensors. Equal rules
            are kept once.
        outputs: Tensor with the outputs.
        operands: Tensors that the outputs were computed from.
        saved: Other tensors that the rule needs.
    """
    tensors = [outputs, *operands, *saved]
    gradient = _GradientOfIdentity(rule, len(saved))
    if tf.executing_eagerly():
        outputs = tf.identity(outputs)
    else:
        # For gradients of the graph, now or later.
        with outputs.graph.gradient_override_map({"IdentityN": registered(gradient)}):
            outputs = tf.identity_n(tensors)[0]
    # A tape does not look up gradients by name.
    record_gradient(
        "GhostBatches", [outputs], tensors, functools.partial(gradient, tensors)
    )
    return outputs


def operation(kind: str, inputs: list, dtypes: list, attributes: dict, gradient):
    """A new operation of the graph that is being traced, with its gradient.

    Args:
        kind: TensorFlow's name for this type of operation.
        inputs: Tensors to compute with.
        dtypes: Dtypes of the outputs.
        attributes: The operation's `AttrValue` by name.
        gradient: Function `gradient(operation, *upstreams)` that gives the gradients by
            the inputs. It is kept as in `registered`.
    """
    graph = tf.compat.v1.get_default_graph()
    with graph.gradient_override_map({kind: registered(gradient)}):
        new = graph.create_op(kind, inputs, dtypes, attrs=attributes)
    # A tape does not look up gradients by name.
    record_gradient(
        kind, list(new.outputs), list(new.inputs), functools.partial(gradient, new)
    )
    return new


def function_attribute(function):
    """The operation attribute that refers to a concrete function.

    The graph that is being traced takes the function up.
    """
    function.add_to_graph(tf.compat.v1.get_default_graph())
    name = tf.compat.v1.NameAttrList(name=function.name)
    return tf.compat.v1.AttrValue(func=name)


def dtypes_attribute(dtypes):
    """The operation attribute that lists dtypes."""
    types = [x.as_datatype_enum for x in dtypes]
    return tf.compat.v1.AttrValue(list=tf.compat.v1.AttrValue.ListValue(type=types))


@dataclasses.dataclass(frozen=True)
class _GradientOfIdentity:
    """Gradient by the tensors of `with_gradient`: a list or an operation's inputs."""

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
        gradient: Function `gradient(operation, *upstreams)` that gives the gradients by
            the operation's inputs. It is kept forever, as in `with_gradient`.
    """
    name = f"GbnKerasGradient{next(_numbers)}"
    tf.RegisterGradient(name)(gradient)
    return name
