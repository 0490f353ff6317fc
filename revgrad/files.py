"""Files that come back whole or not at all: the safetensors layout, a checksum over every byte.

Writing is atomic: beside the file, synchronised, then moved over it. Reading trusts nothing: the
header must be what this release writes, to the byte, and lengths fit the file before any memory is
taken. No pickle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

CHECKSUM = 16  # bytes
ITEM = {"F64": 8, "U32": 4, "U16": 2, "U8": 1, "I64": 8}
LONGEST_HEADER = 2**20


def _header(
    form: str, facts: dict[str, Any], tensors: list[tuple[str, str, int]], checksum: str
) -> bytes:
    """The safetensors header: its length, and JSON padded to a multiple of 8 bytes."""
    metadata = {"format": form, "checksum": checksum, "state": json.dumps(facts, sort_keys=True)}
    entries: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, kind, length in tensors:
        shape, offsets = [length // ITEM[kind]], [at, at + length]
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": offsets}
        at += length
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write(
    path: Any,
    form: str,
    facts: dict[str, Any],
    tensors: list[tuple[str, str, int]],
    content: Iterable[bytes],
) -> None:
    """Write facts (what JSON can keep) and tensors (name, kind, bytes) whose bytes follow.

    Raises: OSError.
    """
    unsigned = _header(form, facts, tensors, "0" * 2 * CHECKSUM)
    digest = blake2b(unsigned, digest_size=CHECKSUM)
    with replacing(path) as file:
        file.write(unsigned)
        for piece in content:
            digest.update(piece)
            file.write(piece)
        file.seek(0)
        file.write(_header(form, facts, tensors, digest.hexdigest()))


@contextmanager
def replacing(path: Any) -> Iterator[Any]:
    """A binary file that takes the place of `path` at the end, whole.

    What is left where this is interrupted is the old file, and where the process is killed maybe
    `.name.part`, which the next writing replaces. Raises: OSError.
    """
    folder, name = os.path.split(os.path.abspath(path))
    part = os.path.join(folder, f".{name}.part")
    if os.path.lexists(part):
        os.unlink(part)
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        if os.path.lexists(part):
            os.unlink(part)
        raise
    _synchronise(folder)


def _synchronise(folder: str) -> None:
    """Make the move itself last, where folders can be opened for that."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Reader:
    """A file that is being read; every byte was checked when it was opened.

    names: the tensors that are wanted, in their order; by default those there are. facts: what was
    written. Tensors are read in their order. Raises: ValueError for a file with any byte changed.
    """

    def __init__(self, path: Any, form: str, names: tuple[str, ...] | None = None) -> None:
        self.path, self.form = path, form
        self._file = open(path, "rb")  # noqa: SIM115 closed by __exit__
        try:
            self._read_header(names, os.fstat(self._file.fileno()).st_size)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            self._file.close()
            raise self._refusal("its header is not one of revgrad's") from error
        start = self._file.tell()
        while piece := self._file.read(2**20):
            self._digest.update(piece)
        if self._digest.hexdigest() != self.checksum:
            self._file.close()
            raise self._refusal("its checksum does not match")
        self._file.seek(start)

    def _read_header(self, names: tuple[str, ...] | None, size: int) -> None:
        length = int.from_bytes(self._file.read(8), "little")
        if not 0 < length <= min(size - 8, LONGEST_HEADER):
            raise ValueError(length)
        entries = json.loads(self._file.read(length))
        metadata = entries.pop("__metadata__")
        self.checksum, self.facts = metadata["checksum"], json.loads(metadata["state"])
        self.lengths: dict[str, int] = {}
        tensors = []
        for name in entries if names is None else names:
            lo, hi = entries[name]["data_offsets"]
            self.lengths[name] = hi - lo
            tensors.append((name, entries[name]["dtype"], hi - lo))
        if sum(self.lengths.values()) != size - 8 - length or min(self.lengths.values()) < 0:
            raise ValueError("length")
        # what is read is what this release writes, to the byte
        self._file.seek(0)
        if self._file.read(8 + length) != _header(self.form, self.facts, tensors, self.checksum):
            raise ValueError("header")
        unsigned = _header(self.form, self.facts, tensors, "0" * 2 * CHECKSUM)
        self._digest = blake2b(unsigned, digest_size=CHECKSUM)

    def read(self, name: str) -> bytes:
        return b"".join(self.pieces(name, 2**20))

    def pieces(self, name: str, most: int) -> Iterator[bytes]:
        left = self.lengths[name]
        while left:
            piece = self._file.read(min(left, most))
            if not piece:
                raise self._refusal("it ends too early")
            left -= len(piece)
            yield piece

    def _refusal(self, why: str) -> ValueError:
        return ValueError(
            f"{self.path} is damaged or no saved {self.form.split()[1]} ({self.form}): {why}; "
            "load an intact copy with the release that wrote it."
        )

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_error: Any) -> None:
        self._file.close()
