"""Messages of protobuf, the form of ONNX files and of TensorBoard's events, read without a schema.

Source: https://protobuf.dev/programming-guides/encoding/
"""

FIXED = {1: 8, 5: 4}  # bytes of a value of these types


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, seven bits a byte, the lowest first, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("the bytes end within a number: is the file whole?")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than ten bytes: this is no message of protobuf")


def fields(data: bytes) -> list[tuple]:
    """The fields of a message in their order: number, type and value of each."""
    found = []
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, kind = divmod(tag, 8)
        if kind == 0:
            value, at = varint(data, at)
        elif kind in (1, 2, 5):
            size, at = varint(data, at) if kind == 2 else (FIXED[kind], at)
            value = data[at : at + size]
            at += size
            if at > len(data):
                raise ValueError(f"field {number} is cut off: is the file whole?")
        else:
            raise ValueError(
                f"type {kind} in byte {at - 1}: this is no message of protobuf; is it a "
                "text, such as the pointer that Git LFS leaves in the place of a file?"
            )
        found.append((number, kind, value))
    return found


def field(data: bytes, number: int) -> list:
    """The values of one field, in their order."""
    return [value for found, _, value in fields(data) if found == number]
