"""Checksums of runs of bytes, and of two from those of each."""

from __future__ import annotations

import functools
from typing import Any

# Polynomials; the highest bit stands for x^0.
CRC32 = 0xEDB88320
CRC32C = 0x82F63B78


def extended(crc32c: int, data: Any) -> int:
    """The checksum of all before and `data`, read-only bytes; 0 of nothing."""
    import google_crc32c  # on first use: `import swa_tf` needs it not

    return int(google_crc32c.extend(crc32c, data))


def joined(first: int, second: int, size: int, polynomial: int) -> int:
    """That of two runs of bytes, from that of each and the second's size.

    `first * x^(8 * size) + second`, as polynomials over two numbers.
    """
    return _times(first, _shift(size, polynomial), polynomial) ^ second


@functools.lru_cache
def _shift(size: int, polynomial: int) -> int:
    """x^(8 * size)."""
    power, square = 1 << 31, 1 << 23
    while size:
        if size & 1:
            power = _times(power, square, polynomial)
        square, size = _times(square, square, polynomial), size >> 1
    return power


def _times(first: int, second: int, polynomial: int) -> int:
    """The product, modulo the polynomial."""
    product = 0
    for bit in range(31, -1, -1):
        if first >> bit & 1:
            product ^= second
        second = second >> 1 ^ (polynomial if second & 1 else 0)
    return product
