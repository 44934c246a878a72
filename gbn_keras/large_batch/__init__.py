"""One batch in parts, the same result: micro-batches and replicas.

`LargeBatchModel` is TensorFlow's; `GradientMoments` runs on any backend.
"""
