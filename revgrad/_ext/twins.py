"""Memory that a graph reads its inputs from, where they come at another address at each launch."""

from __future__ import annotations

from typing import Any


class Twin:
    """Memory for inputs that make up one vector, or for one input. parts: arrays, by input."""

    def __init__(self, given: tuple[Any, ...], members: list[int]) -> None:
        self.members, first = members, given[members[0]]
        self.starts = _starts(given, members)
        if self.starts is None:
            self.whole = first.copy("K")
            self.parts = {members[0]: self.whole}
        else:
            self.whole = first.base.copy()
            cut = [self.whole[lo // first.itemsize :][: given[i].size].reshape(given[i].shape)
                   for lo, i in zip(self.starts, members, strict=True)]  # fmt: skip
            self.parts = dict(zip(members, cut, strict=True))
        if any(x.strides != given[i].strides for i, x in self.parts.items()):
            raise ValueError("an input has gaps between its entries")

    def fill(self, given: tuple[Any, ...]) -> None:
        if self.starts is not None and _starts(given, self.members) == self.starts:
            self.whole[...] = given[self.members[0]].base
            return
        for i, x in self.parts.items():
            x[...] = given[i]


def _starts(given: tuple[Any, ...], members: list[int]) -> list[int] | None:
    """Where inputs begin, in bytes, in the vector that they make up; None where they do not."""
    parts = [given[i] for i in members]
    base = parts[0].base
    if base is None or base.ndim != 1 or sum(x.nbytes for x in parts) != base.nbytes:
        return None
    starts = [x.data.ptr - base.data.ptr for x in parts]
    inside = all(0 <= lo < base.nbytes and x.dtype == base.dtype and x.flags.c_contiguous
                 for lo, x in zip(starts, parts, strict=True))  # fmt: skip
    return starts if inside else None


def twins_of(given: tuple[Any, ...], members: list[int]) -> list[Twin]:
    """Twins of some inputs; one for those that make up one vector, such as the leaves of params."""
    groups: dict[int, list[int]] = {}
    for i in members:
        base = given[i].base
        groups.setdefault((given[i] if base is None else base).data.ptr, []).append(i)
    whole = {k: _starts(given, group) is not None for k, group in groups.items()}
    parts = [[group] if whole[k] else [[i] for i in group] for k, group in groups.items()]
    return [Twin(given, group) for some in parts for group in some]
