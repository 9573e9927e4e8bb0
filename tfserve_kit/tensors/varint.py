"""Variable-length integers, as protobuf and TensorFlow's files write them: seven bits a byte."""


def decode(data: bytes | memoryview, at: int, *, bits: int = 64) -> tuple[int, int]:
    """Return the number of at most `bits` bits that begins at `at`, and where it ends.

    Raises:
        ValueError: the data ends within the number, or the number does not end.
    """
    value = 0
    for shift in range(0, bits, 7):
        if at >= len(data):
            raise ValueError("the data ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 (the top bit says that more follows)
            return value, at
    raise ValueError("a number does not end")


def encode(value: int) -> bytes:
    """Return a number >= 0 as bytes."""
    encoded = bytearray()
    while value > 0x7F:  # noqa: PLR2004 (seven bits a byte)
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
