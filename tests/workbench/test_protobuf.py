"""Messages of protobuf: against the bytes written by hand and by the library."""

import pytest
from google.protobuf import descriptor_pb2
from tensorboard.compat.proto.event_pb2 import Event

from workbench import protobuf


@pytest.mark.parametrize(
    ("data", "value", "length"),
    [
        (b"\x00", 0, 1),
        (b"\x01", 1, 1),
        (b"\x7f", 127, 1),
        (b"\x80\x01", 128, 2),
        (b"\xac\x02", 300, 2),
        (b"\xff\xff\x03\x07", 65535, 3),
        (b"\xff" * 9 + b"\x01", 2**64 - 1, 10),
    ],
)
def test_a_varint_has_seven_bits_a_byte(data, value, length):
    assert protobuf.varint(data, 0) == (value, length)
    assert protobuf.varint(b"\x05" + data, 1) == (value, length + 1)


def test_a_number_that_does_not_end_is_refused():
    with pytest.raises(ValueError, match="is the file whole"):
        protobuf.varint(b"\x80", 0)
    with pytest.raises(ValueError, match="is the file whole"):
        protobuf.varint(b"", 0)
    with pytest.raises(ValueError, match="more than ten bytes"):
        protobuf.varint(b"\x80" * 10 + b"\x01", 0)


def test_fields_of_each_type_by_hand():
    data = b"\x08\x96\x01" + b"\x12\x03abc" + b"\x1d\x00\x00\x80\x3f" + b"\x21" + bytes(8)
    assert protobuf.fields(data) == [
        (1, 0, 150),
        (2, 2, b"abc"),
        (3, 5, b"\x00\x00\x80\x3f"),
        (4, 1, bytes(8)),
    ]
    assert protobuf.fields(b"") == []
    assert protobuf.fields(b"\x80\x01\x07") == [(16, 0, 7)]


@pytest.mark.parametrize("data", [b"\x12\x03ab", b"\x1d\x00\x00\x80", b"\x21" + bytes(7)])
def test_a_field_that_is_cut_off_is_refused(data):
    with pytest.raises(ValueError, match=f"field {data[0] >> 3} is cut off: is the file whole"):
        protobuf.fields(data)


@pytest.mark.parametrize(("kind", "at"), [(3, 0), (4, 0), (6, 0), (7, 0), (6, 2)])
def test_another_type_is_refused_with_its_place(kind, at):
    data = b"\x08\x01"[:at] + bytes([8 + kind, 0])
    with pytest.raises(ValueError, match=f"type {kind} in byte {at}: .* Git LFS"):
        protobuf.fields(data)


def test_the_pointer_of_git_lfs_is_named():
    with pytest.raises(ValueError, match="Git LFS"):
        protobuf.fields(b"version https://git-lfs.github.com/spec/v1\n")


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**35 + 5])
def test_what_the_library_writes_is_read(number):
    event = Event(step=number, file_version="é").SerializeToString()
    assert protobuf.field(event, 2) == ([number] if number else [])
    assert protobuf.field(event, 3) == ["é".encode()]
    proto = descriptor_pb2.FieldDescriptorProto(name="n", number=number % 2**31)
    assert protobuf.field(proto.SerializeToString(), 3) == [number % 2**31]


def test_a_field_is_found_as_often_as_it_is_there():
    message = b"\x08\x96\x01" + b"\x1a\x02ab" + b"\x1a\x00"
    assert protobuf.field(message, 3) == [b"ab", b""]
    assert protobuf.field(message, 2) == []
