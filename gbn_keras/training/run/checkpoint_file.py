"""A checkpoint as bytes: named arrays and facts, whole or recognized as not whole."""

import hashlib
import io
import json

import numpy as np

# Before the rest, of which it holds the SHA-256: so any change of any byte shows.
_HEADER = b"gbn-keras checkpoint 1 %s\n"
_FACTS = "facts"


class NotWhole(ValueError):
    """The bytes are not those that were written."""


def encode(arrays: dict[str, np.ndarray], facts: dict) -> bytes:
    """A checkpoint's bytes.

    Args:
        arrays: By name, of any shape and dtype but Python objects.
        facts: What JSON can hold.
    """
    text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **{_FACTS: text}, **arrays)
    content = content.getvalue()
    return _header(content) + content


def decode(raw: bytes) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays and facts of a checkpoint.

    An array of a dtype that numpy does not know (bfloat16) comes back as bytes of its
    size, to be viewed as what it was.

    Raises:
        NotWhole: If the bytes are not those that `encode` made.
    """
    raw = memoryview(raw)
    length = len(_header(b""))
    if raw[:length] != _header(raw[length:]):
        raise NotWhole("its checksum is wrong")
    with np.load(io.BytesIO(raw[length:]), allow_pickle=False) as content:
        arrays = dict(content)
    return arrays, json.loads(arrays.pop(_FACTS).tobytes())


def _header(content):
    return _HEADER % hashlib.sha256(content).hexdigest().encode()
