"""Sorted tables of keys and values: the index of a TensorFlow checkpoint.

The format is LevelDB's (https://github.com/google/leveldb, doc/table_format.md)
without compression, as TensorFlow writes it: blocks of entries, an index of
the blocks, and a footer; each block has a checksum.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from swa_tf._checkpoint_files.checksums import extended
from swa_tf._checkpoint_files.stored import DamagedError

_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_FOOTER = 48
_BLOCK = 1 << 18


def masked(crc32c: int) -> int:
    """A checksum as it is stored, that of bytes which hold checksums."""
    rotated = (crc32c >> 15) | (crc32c << 17)
    return (rotated + 0xA282EAD8) & 0xFFFFFFFF


def unmasked(stored: int) -> int:
    """The inverse of `masked`."""
    rotated = (stored - 0xA282EAD8) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    """An integer, seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The integer at byte `at` of `data`, and the byte after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = _byte(data, at)
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80 and value < 1 << 64:
            return value, at
    raise DamagedError("an integer is too long")


def read(table: bytes) -> list[tuple[bytes, bytes]]:
    """The keys and values of a table, in order.

    Raises:
        DamagedError: If it is not a whole and sound table.
    """
    footer = table[-_FOOTER:]
    if len(footer) < _FOOTER or not footer.endswith(_MAGIC):
        raise DamagedError("it is not a table of this format, or is cut off")
    handles, at = [], 0
    for _ in range(2):
        offset, at = read_varint(footer, at)
        size, at = read_varint(footer, at)
        handles.append((offset, size))
    if any(footer[at : -len(_MAGIC)]):
        raise DamagedError("the footer of the index is damaged")
    (metaindex, index) = (_block(table, *handle) for handle in handles)
    list(_entries(metaindex))
    found: list[tuple[bytes, bytes]] = []
    for _, handle in _entries(index):
        offset, at = read_varint(handle, 0)
        size, _ = read_varint(handle, at)
        for key, value in _entries(_block(table, offset, size)):
            if found and key <= found[-1][0]:
                raise DamagedError("the keys of the index are not in order")
            found.append((key, value))
    return found


def write(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A table of entries whose keys are in order."""
    table = bytearray()
    index: list[tuple[bytes, bytes]] = []
    pending: list[tuple[bytes, bytes]] = []
    size = 0

    def add(block: list[tuple[bytes, bytes]]) -> bytes:
        contents = _encoded(block) + b"\0"
        handle = varint(len(table)) + varint(len(contents) - 1)
        checksum = masked(extended(0, contents))
        table.extend(contents + struct.pack("<I", checksum))
        return handle

    for entry in entries:
        pending.append(entry)
        size += len(entry[0]) + len(entry[1])
        if size >= _BLOCK:
            index.append((entry[0], add(pending)))
            pending, size = [], 0
    if pending:
        index.append((pending[-1][0], add(pending)))
    handles = add([]) + add(index)
    return bytes(table + handles.ljust(_FOOTER - len(_MAGIC), b"\0") + _MAGIC)


def _block(table: bytes, offset: int, size: int) -> bytes:
    contents = table[offset : offset + size + 1]
    checksum = table[offset + size + 1 : offset + size + 5]
    if len(checksum) < 4:
        raise DamagedError("the index is cut off")
    if struct.unpack("<I", checksum)[0] != masked(extended(0, contents)):
        raise DamagedError("a checksum of the index is wrong")
    if contents[-1] != 0:
        raise DamagedError("the index is compressed, which is not supported")
    return contents[:-1]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """A key may begin as the one before it does, and then is cut short."""
    if len(block) < 4:
        raise DamagedError("a block of the index is too short")
    (restarts,) = struct.unpack("<I", block[-4:])
    end, at, key = len(block) - 4 * (restarts + 1), 0, b""
    while at < end:
        shared, at = read_varint(block, at)
        rest, at = read_varint(block, at)
        size, at = read_varint(block, at)
        if shared > len(key):
            raise DamagedError("an entry of the index is damaged")
        key = key[:shared] + block[at : at + rest]
        yield key, block[at + rest : at + rest + size]
        at += rest + size
    if at != end:
        raise DamagedError("an entry of the index is cut off")


def _encoded(block: list[tuple[bytes, bytes]]) -> bytes:
    """Entries with whole keys, and where each begins, at least one."""
    contents, starts = bytearray(), []
    for key, value in block:
        starts.append(len(contents))
        contents += varint(0) + varint(len(key)) + varint(len(value))
        contents += key + value
    starts = starts or [0]
    return bytes(contents) + struct.pack(
        f"<{len(starts) + 1}I", *starts, len(starts)
    )


def _byte(data: bytes, at: int) -> int:
    if at >= len(data):
        raise DamagedError("it is cut off")
    return data[at]
