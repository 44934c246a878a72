"""A checkpoint as bytes: named arrays and facts, with a checksum."""

import hashlib
import io
import json

import numpy as np

# It holds the SHA-256 of the rest, which detects every changed byte.
_HEADER = b"gbn-keras checkpoint 1 %s\n"
_FACTS = "facts"


class NotWhole(ValueError):
    """The bytes have changed since they were written."""


def encode(arrays: dict[str, np.ndarray], facts: dict) -> bytes:
    """The bytes of a checkpoint.

    Args:
        arrays: Arrays by name, of any shape and any dtype except Python objects.
        facts: Values that JSON can hold.
    """
    text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **{_FACTS: text}, **arrays)
    content = file.getvalue()
    return _header(content) + content


def decode(raw: bytes) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays and facts of a checkpoint.

    If numpy does not know a dtype (bfloat16), the array has a dtype of raw bytes of the
    same size. View it as the original dtype.

    Raises:
        NotWhole: If the bytes are not those that `encode` made.
    """
    length = len(_header(b""))
    head, content = raw[:length], memoryview(raw)[length:]
    if head != _header(content):
        raise NotWhole("its checksum is wrong")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = dict(file)
    return arrays, json.loads(arrays.pop(_FACTS).tobytes())


def _header(content):
    return _HEADER % hashlib.sha256(content).hexdigest().encode()
