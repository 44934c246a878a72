"""Decodes many small JPEGs of one form at once, with numpy alone.

The result has the same bits as `tf.io.decode_jpeg`, which decodes the program's images:
libjpeg's fast integer transform and its "fancy" upsampling of the colors. A machine
with an accelerator may have neither TensorFlow nor another decoder, and Pillow's
default is the slow transform, which gives other bits.

All images must share their header: size, tables, and colors at full or half resolution.
Then one numpy operation decodes the next symbol of all images.

Reference: ITU-T T.81 for the format; libjpeg's `jidctfst.c`, `jdsample.c` and
`jdcolor.c` for the arithmetic.
"""

import struct

import numpy as np

# The place in a block, row by row, of each coefficient in the file's order: along the
# diagonals, in turns upwards and downwards.
_ZIGZAG = np.array(
    sorted(
        range(64),
        key=lambda i: (
            i // 8 + i % 8,
            i // 8 if (i // 8 + i % 8) % 2 else i % 8,
        ),
    )
)
_IMAGES_AT_ONCE = 5000


def decode(jpegs: list[bytes]) -> np.ndarray:
    """The images, uint8 of shape `(images, height, width, 3)`.

    Raises:
        ValueError: If the files do not have the form described above.
    """
    form = _Form(jpegs[0])
    parts = []
    for start in range(0, len(jpegs), _IMAGES_AT_ONCE):
        scans = [form.scan(jpeg) for jpeg in jpegs[start : start + _IMAGES_AT_ONCE]]
        parts.append(form.colors(form.planes(form.coefficients(scans))))
    return np.concatenate(parts)


class _Form:
    """What all the files share."""

    def __init__(self, jpeg):
        quantization, codes = {}, {}
        place, marker = 2, None
        while marker != 0xDA:  # The last header, that of the scan.
            head = jpeg[place : place + 4]
            if jpeg[:2] != b"\xff\xd8" or len(head) < 4:
                raise ValueError("a file is no JPEG, or ends in its header")
            marker, length = head[1], int.from_bytes(head[2:], "big")
            body = jpeg[place + 4 : place + 2 + length]
            place += 2 + length
            if marker == 0xDB:
                quantization.update(_quantization_tables(body))
            elif marker == 0xC4:
                codes.update(_code_tables(body))
            elif marker == 0xC0:
                bits, self.height, self.width, count = struct.unpack(">BHHB", body[:6])
                components = [body[6 + 3 * i : 9 + 3 * i] for i in range(count)]
            elif 0xC1 <= marker <= 0xCF or marker == 0xDD:
                raise ValueError("a JPEG is not baseline, or has restart markers")
        self.header = jpeg[:place]
        samplings = [component[1] for component in components]
        if bits != 8 or samplings not in ([0x22, 0x11, 0x11], [0x11] * 3):
            raise ValueError("a JPEG's colors have neither full nor half resolution")
        self.is_halved = samplings[0] == 0x22
        unit = 16 if self.is_halved else 8
        if self.height % unit or self.width % unit:
            raise ValueError(f"a JPEG's sides are no multiples of {unit} pixels")
        self.units = self.height // unit, self.width // unit
        blocks = [0] * (4 if self.is_halved else 1) + [1, 2]
        self.component = np.array(blocks * (self.units[0] * self.units[1]) + [0])
        self.quantization = [quantization[component[2]] for component in components]
        selectors = [body[2 + 2 * i] for i in range(3)]
        # For each component, the table of the first coefficient, then of the others.
        self.codes = np.concatenate(
            [codes[kind, (s >> 4, s & 15)[kind]] for s in selectors for kind in (0, 1)]
        )

    def scan(self, jpeg):
        """The compressed part of a file."""
        if not jpeg.startswith(self.header):
            raise ValueError("the JPEGs do not share one header")
        end = jpeg.rindex(b"\xff\xd9")
        return jpeg[len(self.header) : end].replace(b"\xff\x00", b"\xff")

    def coefficients(self, scans):
        """The coefficients, `(images, blocks, 64)`, row by row in each block."""
        images, blocks = len(scans), len(self.component) - 1
        length = max(map(len, scans)) + 8
        data = np.frombuffer(b"".join(s.ljust(length, b"\xff") for s in scans), "u1")
        row = np.arange(images) * length
        last = 8 * (length - 3)

        def next_16_bits():
            first = row + (position >> 3)
            three = data[first].astype(np.int32) << 16
            three |= data[first + 1].astype(np.int32) << 8
            three |= data[first + 2]
            return three >> (8 - (position & 7)) & 0xFFFF

        # An image that is finished goes on in a block behind its last one.
        found = np.zeros(images * (blocks + 1) * 64 + 1, np.int16)
        position, block, place = np.zeros((3, images), np.int64)
        before = np.zeros(3 * images, np.int64)
        image = np.arange(images)
        while (block < blocks).any():
            component = self.component[block]
            is_first = place == 0
            entry = self.codes[(2 * component + ~is_first) << 16 | next_16_bits()]
            position += entry >> 8
            run, size = entry >> 4 & 15, entry & 15
            value = next_16_bits() >> (16 - size)
            value -= np.where(value < (1 << size) >> 1, (1 << size) - 1, 0)
            position = np.minimum(position + size, last)
            # The first coefficient is stored as its difference from the block before.
            of_component = 3 * image + component
            before[of_component] += np.where(is_first, value, 0)
            value = np.where(is_first, before[of_component], value)
            place = np.minimum(place + run, 63)
            target = (image * (blocks + 1) + block) * 64 + _ZIGZAG[place]
            has_value = is_first | (size > 0)
            found[np.where(has_value, target, found.size - 1)] = value
            is_end = ~is_first & (entry & 255 == 0)
            place = np.where(is_end, 64, place + 1)
            block = np.minimum(block + (place > 63), blocks)
            place = np.where(place > 63, 0, place)
        return found[:-1].reshape(images, blocks + 1, 64)[:, :-1]

    def planes(self, coefficients):
        """The three components, `(images, height, width)` each, before upsampling."""
        for index, table in enumerate(self.quantization):
            blocks = coefficients[:, self.component[:-1] == index]
            values = _inverse_transform(blocks.reshape(-1, 8, 8) * table)
            side = 2 if self.is_halved and index == 0 else 1
            rows, columns = self.units
            values = values.reshape(-1, rows, columns, side, side, 8, 8)
            values = values.transpose(0, 1, 3, 5, 2, 4, 6)
            yield values.reshape(-1, rows * side * 8, columns * side * 8)

    def colors(self, planes):
        """Red, green and blue from brightness and two color differences."""
        light, blue, red = planes
        if self.is_halved:
            blue, red = _double(blue), _double(red)
        blue, red = blue - 128, red - 128
        half = 1 << 15
        mixed = (
            light + (91881 * red + half >> 16),
            light + (-22554 * blue - 46802 * red + half >> 16),
            light + (116130 * blue + half >> 16),
        )
        return np.clip(np.stack(mixed, axis=-1), 0, 255).astype(np.uint8)


def _quantization_tables(body):
    """Divisors by table number, with the scales of the fast transform in them."""
    factors = np.cos(np.arange(8) * np.pi / 16) * np.sqrt(2)
    factors[0] = 1
    scales = np.rint(np.outer(factors, factors) * 2**14).astype(np.int64).ravel()
    for start in range(0, len(body), 65):
        if body[start] >> 4:
            raise ValueError("a JPEG has divisors of 16 bits")
        table = np.zeros(64, np.int64)
        table[_ZIGZAG] = np.frombuffer(body[start + 1 : start + 65], "u1")
        yield body[start], (table * scales + 2**11 >> 12).reshape(8, 8).astype(np.int32)


def _code_tables(body):
    """By kind and table number: what any 16 bits begin with, `length << 8 | symbol`."""
    while body:
        kind, number = body[0] >> 4, body[0] & 15
        counts, symbols = body[1:17], iter(body[17:])
        table, first = np.zeros(1 << 16, np.int32), 0
        for length, count in enumerate(counts, 1):
            for _ in range(count):
                end = first + (1 << (16 - length))
                table[first:end] = length << 8 | next(symbols)
                first = end
        table[first:] = 1 << 8  # No code begins so: padding behind an image's end.
        yield (kind, number), table
        body = body[17 + sum(counts) :]


def _inverse_transform(blocks):
    """Pixels, 0 to 255, of scaled coefficients `(blocks, 8, 8)`."""
    columns = _inverse_of_8([blocks[:, i] for i in range(8)])
    rows = _inverse_of_8([np.stack(columns, axis=1)[:, :, i] for i in range(8)])
    return np.clip((np.stack(rows, axis=2) >> 5) + 128, 0, 255)


def _inverse_of_8(x):
    """The transform along one axis (Arai, Agui, Nakajima), with 8 bits of fraction."""
    # The even coefficients.
    total, difference = x[0] + x[4], x[0] - x[4]
    both = x[2] + x[6]
    rest = ((x[2] - x[6]) * 362 >> 8) - both
    even = (total + both, difference + rest, difference - rest, total - both)
    # The odd ones.
    a, b, c, d = x[5] + x[3], x[5] - x[3], x[1] + x[7], x[1] - x[7]
    odd_7 = c + a
    common = (b + d) * 473 >> 8
    odd_6 = (b * -669 >> 8) + common - odd_7
    odd_5 = ((c - a) * 362 >> 8) - odd_6
    odd_4 = (d * 277 >> 8) - common + odd_5
    odd = (odd_7, odd_6, odd_5, -odd_4)
    first = [e + o for e, o in zip(even, odd, strict=True)]
    last = [e - o for e, o in zip(even, odd, strict=True)]
    return first + last[::-1]


def _double(plane):
    """Twice the resolution: three quarters of the nearest value, one of the next."""
    edge = ((0, 0), (1, 1), (0, 0))
    padded = np.pad(plane, edge, mode="edge")
    rows = np.stack(
        (3 * plane + padded[:, :-2], 3 * plane + padded[:, 2:]), axis=2
    ).reshape(len(plane), -1, plane.shape[2])
    padded = np.pad(rows, ((0, 0), (0, 0), (1, 1)), mode="edge")
    # The two roundings differ, so that they do not make the image brighter.
    left = 3 * rows + padded[:, :, :-2] + 8 >> 4
    right = 3 * rows + padded[:, :, 2:] + 7 >> 4
    return np.stack((left, right), axis=3).reshape(len(rows), rows.shape[1], -1)
