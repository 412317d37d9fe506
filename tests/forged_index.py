"""Indices of TensorFlow's checkpoints, read and written with right checksums.

The format is LevelDB's (https://github.com/google/leveldb, doc/table_format.md)
without compression, of `BundleEntryProto`s by their keys. The package leaves it
to TensorFlow; here it serves to write what TensorFlow never would.
"""

import pathlib
import struct

from tensorflow.core.protobuf import tensor_bundle_pb2

_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)


def read(path):
    """The values of an index, by their keys; that of `b""` is the header."""
    table = pathlib.Path(f"{path}.index").read_bytes()
    _, _, at = _handle(table, len(table) - 48)
    entries = {}
    for value in _block(table, at).values():
        entries.update(_block(table, 0, value))
    return entries


def write(path, entries):
    """Writes an index: one block of entries, and what leads to it."""
    table = bytearray()

    def add(block):
        handle = _varint(len(table)) + _varint(len(block))
        table.extend(block + b"\0")
        table.extend(struct.pack("<I", masked(crc32c(block + b"\0"))))
        return handle

    block = add(_encoded(sorted(entries.items())))
    handles = add(_encoded([])) + add(_encoded([(max(entries), block)]))
    table += handles.ljust(40, b"\0") + _MAGIC
    pathlib.Path(f"{path}.index").write_bytes(table)


def entry(entries, key):
    """One entry, decoded."""
    return tensor_bundle_pb2.BundleEntryProto.FromString(entries[key])


def crc32c(data):
    """RFC 3720, appendix B.4."""
    checksum = 0xFFFFFFFF
    for byte in data:
        checksum ^= byte
        for _ in range(8):
            checksum = checksum >> 1 ^ (0x82F63B78 if checksum & 1 else 0)
    return checksum ^ 0xFFFFFFFF


def masked(checksum):
    """Returns the checksum in the masked form in which files store it."""
    rotated = checksum >> 15 | checksum << 17
    return (rotated + 0xA282EAD8) & 0xFFFFFFFF


def _block(table, at, handle=None):
    """The entries of the block that a handle, at some place, leads to."""
    start, size, _ = _handle(table if handle is None else handle, at)
    block = table[start : start + size]
    (restarts,) = struct.unpack("<I", block[-4:])
    end, at, key, entries = len(block) - 4 * (restarts + 1), 0, b"", {}
    while at < end:
        shared, at = _read_varint(block, at)
        rest, at = _read_varint(block, at)
        length, at = _read_varint(block, at)
        key = key[:shared] + block[at : at + rest]
        entries[key] = block[at + rest : at + rest + length]
        at += rest + length
    return entries


def _encoded(items):
    contents, starts = b"", []
    for key, value in items:
        starts.append(len(contents))
        contents += b"\0" + _varint(len(key)) + _varint(len(value))
        contents += key + value
    starts = starts or [0]
    return contents + struct.pack(f"<{len(starts) + 1}I", *starts, len(starts))


def _handle(data, at):
    start, at = _read_varint(data, at)
    size, at = _read_varint(data, at)
    return start, size, at


def _varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _read_varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at
