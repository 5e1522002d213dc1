"""Sparse integers in few bytes: where something is, as gaps with a Rice parameter, and what it is, each under Huffman.

A chunk of n numbers, most of them zero, is coded by itself, so that a reader may begin at any and needs memory for one.
Gaps between non-zero numbers are nearly geometric: the low bits of a gap carry one bit each and are kept as they are,
the rest, whose mean is some dozens, goes through a Huffman code, as do the values. Source: Rice and Plaunt, IEEE Trans.
Commun. 19 (1971); RFC 1951 for the Huffman code.

What is read was written by anyone: every length is checked before it is believed, and a chunk of n numbers never takes
memory for more than some n.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lora_lab.errors import FileFormatError

CHUNK_ELEMENTS: Final = 1 << 20
_EMPTY, _SPARSE, _DENSE = range(3)
_HEAD: Final = struct.Struct("<BBIIII")  # mode, low bits of a gap, non-zero numbers, bytes of gaps, values and escapes
_ESCAPE: Final = 255
_MEAN_BITS: Final = 5  # the mean of what the Huffman code sees of a gap lies between 2⁵ and 2⁶
_MOST_LOW_BITS: Final = 16
# Beyond this share of non-zero numbers a gap costs more than a zero does.
_DENSE_SHARE: Final = 0.4

Integers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


class Sparse(NamedTuple):
    """The non-zero numbers of a run of numbers.

    positions : ascending, from the run's first
    values : of the same length, none of them zero
    """

    positions: Integers
    values: Integers


def encode(sparse: Sparse, elements: int, bits: int) -> bytes:
    """Code one chunk.

    Parameters
    ----------
    elements : how many numbers it has, at most `CHUNK_ELEMENTS`
    bits : 16, 32 or 64: each value v obeys −2^(bits−1) ≤ v < 2^(bits−1)

    Returns
    -------
    at most elements·bits/8 bytes and some dozens

    Examples
    --------
    >>> sparse = Sparse(np.array([3, 900]), np.array([1, -2]))
    >>> found = decode(encode(sparse, 1000, 16), 1000, 16)
    >>> found.positions.tolist(), found.values.tolist()
    ([3, 900], [1, -2])
    """
    count = len(sparse.positions)
    if not count:
        return _HEAD.pack(_EMPTY, 0, 0, 0, 0, 0)
    turned = _zigzag(sparse.values)
    if count > elements * _DENSE_SHARE:
        numbers = np.zeros(elements, dtype=np.uint64)
        numbers[sparse.positions] = turned
        values, escapes = _symbols(numbers, bits)
        return _HEAD.pack(_DENSE, 0, count, 0, len(values), len(escapes)) + values + escapes
    gaps = np.diff(sparse.positions, prepend=-1) - 1
    low_bits = _rice(elements, count)
    low = _packed(gaps, low_bits)
    high = _deflated(_stretched(gaps >> low_bits))
    values, escapes = _symbols(turned - np.uint64(1), bits)
    return _HEAD.pack(_SPARSE, low_bits, count, len(high), len(values), len(escapes)) + low + high + values + escapes


def decode(content: bytes, elements: int, bits: int) -> Sparse:
    """Read one chunk that :func:`encode` has written.

    Raises
    ------
    FileFormatError
        it is nothing that :func:`encode` writes for so many numbers.
    """
    if len(content) < _HEAD.size:
        raise _damaged()
    mode, low_bits, count, *lengths = _HEAD.unpack_from(content)
    parts = memoryview(content)[_HEAD.size :]
    if mode == _EMPTY and not any((low_bits, count, *lengths, len(parts))):
        return Sparse(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    if not 0 < count <= elements:
        raise _damaged()
    if mode == _DENSE and low_bits == 0 and lengths[0] == 0 and sum(lengths) == len(parts):
        whole = _unzigzag(_numbers(parts[: lengths[1]], parts[lengths[1] :], elements, bits), bits)
        positions = np.flatnonzero(whole)
        if len(positions) != count:
            raise _damaged()
        return Sparse(positions, whole[positions])
    packed = (count * low_bits + 7) // 8
    if mode != _SPARSE or low_bits > _MOST_LOW_BITS or packed + sum(lengths) != len(parts):
        raise _damaged()
    low, rest = parts[:packed], parts[packed:]
    high, values, escapes = rest[: lengths[0]], rest[lengths[0] : lengths[0] + lengths[1]], rest[sum(lengths[:2]) :]
    gaps = _shrunk(high, count, elements >> low_bits) << low_bits | _unpacked(low, count, low_bits)
    positions = np.cumsum(gaps + 1) - 1
    if positions[-1] >= elements:
        raise _damaged()
    return Sparse(positions, _unzigzag(_numbers(values, escapes, count, bits) + np.uint64(1), bits))


def entropy_bits(sparse: Sparse, elements: int) -> float:
    """Zeroth-order entropy −Σ p log₂ p of the numbers, zeros among them, in bits each.

    Examples
    --------
    >>> entropy_bits(Sparse(np.array([0, 2]), np.array([1, 1])), 4)
    1.0
    """
    counts = np.unique(sparse.values, return_counts=True)[1]
    shares = np.append(counts, elements - len(sparse.positions)) / elements
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


def _rice(elements: int, count: int) -> int:
    """How many low bits of a gap carry one bit each."""
    return min(_MOST_LOW_BITS, max(0, (elements // count).bit_length() - 1 - _MEAN_BITS))


def _stretched(numbers: Integers) -> Bytes:
    """Each number as so many bytes 255, and the rest of it as one byte below."""
    escapes = numbers // _ESCAPE
    if not escapes.any():
        return numbers.astype(np.uint8)
    ends = np.cumsum(escapes + 1) - 1
    symbols = np.full(int(ends[-1]) + 1, _ESCAPE, dtype=np.uint8)
    symbols[ends] = numbers - escapes * _ESCAPE
    return symbols


def _shrunk(content: memoryview, count: int, most: int) -> Integers:
    """The `count` numbers that :func:`_stretched` made bytes of; together they are at most `most`."""
    symbols = _inflated(content, count + most // _ESCAPE + 1)
    ends = np.flatnonzero(symbols != _ESCAPE)
    if len(ends) != count or ends[-1] != len(symbols) - 1:
        raise _damaged()
    return np.diff(np.cumsum(symbols, dtype=np.int64)[ends], prepend=0)


def _packed(gaps: Integers, low_bits: int) -> bytes:
    if not low_bits:
        return b""
    bits = (gaps[:, None] >> np.arange(low_bits)) & 1  # (count, low_bits)
    return np.packbits(bits.astype(np.uint8)).tobytes()


def _unpacked(content: memoryview, count: int, low_bits: int) -> Integers:
    if not low_bits:
        return np.zeros(count, dtype=np.int64)
    bits = np.unpackbits(np.frombuffer(content, dtype=np.uint8), count=count * low_bits).reshape(count, low_bits)
    return bits.astype(np.int64) @ (np.int64(1) << np.arange(low_bits))


def _symbols(numbers: npt.NDArray[np.uint64], bits: int) -> tuple[bytes, bytes]:
    """Numbers below 255 as a byte, others as 255; and the others."""
    is_escaped = numbers >= _ESCAPE
    values = _deflated(np.where(is_escaped, np.uint64(_ESCAPE), numbers).astype(np.uint8))
    return values, _planes(numbers[is_escaped], bits) if is_escaped.any() else b""


def _numbers(values: memoryview, escapes: memoryview, count: int, bits: int) -> npt.NDArray[np.uint64]:
    """What :func:`_symbols` was given."""
    numbers = _inflated(values, count, is_exact=True).astype(np.uint64)
    is_escaped = numbers == _ESCAPE
    if is_escaped.any():
        numbers[is_escaped] = _unplanes(escapes, int(is_escaped.sum()), bits)
    elif len(escapes):
        raise _damaged()
    return numbers


def _planes(numbers: npt.NDArray[np.uint64], bits: int) -> bytes:
    """All lowest bytes, then all next ones, deflated: the high ones are nearly all zero."""
    planes = numbers.astype("<u8").view(np.uint8).reshape(-1, 8).T[: bits // 8]
    return _deflated(np.ascontiguousarray(planes))


def _unplanes(content: memoryview, count: int, bits: int) -> npt.NDArray[np.uint64]:
    planes = np.zeros((8, count), dtype=np.uint8)
    planes[: bits // 8] = _inflated(content, count * bits // 8, is_exact=True).reshape(bits // 8, count)
    return np.ascontiguousarray(planes.T).view("<u8").reshape(-1).astype(np.uint64)


def _zigzag(values: Integers) -> npt.NDArray[np.uint64]:
    """0, −1, 1, −2, … as 0, 1, 2, 3, …"""
    return ((values << 1) ^ (values >> 63)).view(np.uint64)


def _unzigzag(numbers: npt.NDArray[np.uint64], bits: int) -> Integers:
    if bits < 64 and len(numbers) and int(numbers.max()) >> bits:
        raise _damaged()
    return (numbers >> np.uint64(1)).view(np.int64) ^ -(numbers & np.uint64(1)).view(np.int64)


def _deflated(symbols: Bytes) -> bytes:
    # Gaps and values repeat by chance alone: looking for repetitions would only take time.
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(symbols.tobytes()) + coder.flush()


def _inflated(content: memoryview, most: int, *, is_exact: bool = False) -> Bytes:
    """At most `most` bytes, or exactly so many."""
    decoder = zlib.decompressobj(-15)
    try:
        found = decoder.decompress(content, max(1, most))
        # What ends exactly at the limit has not always told that it ended.
        more = decoder.decompress(decoder.unconsumed_tail, 1) if not decoder.eof else b""
    except zlib.error:
        raise _damaged() from None
    if more or not decoder.eof or decoder.unused_data or (is_exact and len(found) != most):
        raise _damaged()
    return np.frombuffer(found, dtype=np.uint8)


def _damaged() -> FileFormatError:
    return FileFormatError("A coded residual is damaged.", hint="Fetch the undo file again.")


def chunk_count(elements: int) -> int:
    """How many chunks so many numbers make.

    Examples
    --------
    >>> chunk_count(0), chunk_count(1), chunk_count(CHUNK_ELEMENTS + 1)
    (0, 1, 2)
    """
    return -(-elements // CHUNK_ELEMENTS)


class ChunkEncoder:
    """Codes a long run of numbers, given from its beginning to its end in pieces of any size.

    Parameters
    ----------
    elements : how many numbers there will be
    bits : 16, 32 or 64
    """

    def __init__(self, elements: int, bits: int) -> None:
        self._elements = elements
        self._bits = bits
        self._chunk = 0
        self._waiting: list[Sparse] = []
        self.sizes: list[int] = []  # bytes of every chunk that was given

    def put(self, first: int, sparse: Sparse) -> list[bytes]:
        """Take in the numbers from `first` on; what was passed over is zero. Gives the chunks that are complete."""
        done = self._upto(first // CHUNK_ELEMENTS)
        if len(sparse.positions):
            self._waiting.append(Sparse(sparse.positions + first, sparse.values))
        return done

    def finish(self) -> list[bytes]:
        """Give the chunks that are left."""
        return self._upto(chunk_count(self._elements))

    def _upto(self, chunk: int) -> list[bytes]:
        if chunk <= self._chunk:
            return []
        empty = [np.zeros(0, dtype=np.int64)]
        positions = np.concatenate(empty + [sparse.positions for sparse in self._waiting])
        values = np.concatenate(empty + [sparse.values for sparse in self._waiting])
        done = []
        for number in range(self._chunk, chunk):
            begin = number * CHUNK_ELEMENTS
            elements = min(CHUNK_ELEMENTS, self._elements - begin)
            low, high = np.searchsorted(positions, [begin, begin + elements])
            done.append(encode(Sparse(positions[low:high] - begin, values[low:high]), elements, self._bits))
        rest = np.searchsorted(positions, chunk * CHUNK_ELEMENTS)
        self._waiting = [Sparse(positions[rest:], values[rest:])]
        self._chunk = chunk
        self.sizes += [len(part) for part in done]
        return done
