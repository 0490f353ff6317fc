"""Replays of CuPy arrays as CUDA graphs, so that small networks are not bound by launches.

A phase of a replay runs once as it is, which compiles its kernels. At its second call it is
captured: run on a stream that only takes notes, with memory from a pool that nothing else uses, so
that launching the notes runs the same kernels on the same addresses. A graph is kept if it gives
the bits of the plain run beside it. What cannot be captured stays plain for good; `why` says so.
"""

from __future__ import annotations

import gc
import operator
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np

from revgrad._ext import homes
from revgrad._ext.twins import twins_of

LARGEST = 2**24  # bytes of an array from which on kernels take longer than their launches
CAPTURES, LAUNCHES = 4, 20  # a phase may be captured 4 times, and once more per 20 launches
OURS = ("numpy", "_operator", "revgrad.rules", "revgrad._ext.homes")  # they leave all to CuPy
ARITHMETIC = {operator.add, operator.sub, operator.mul, operator.truediv}
_one_at_a_time = threading.RLock()


def made(replay: Any, inputs: Any, outputs: Any) -> Graphs | None:
    """The Graphs of a replay, which take the place of what it runs; None for NumPy's arrays."""
    if not any(_is_away(v.value) for phase in inputs for v in phase):
        return None
    host = _of_numbers(replay.phases, inputs)
    if any(host):
        return _apart(replay, inputs, outputs, host)
    return Graphs(replay, inputs, outputs)


def _apart(replay: Any, inputs: Any, outputs: Any, host: list[list[Any]]) -> Any:
    """The Graphs of a program without what `host` has of it, which is done before each launch."""
    done = {id(i) for phase in host for i in phase}
    phases = [[i for i in _members(phase) if id(i) not in done] for phase in replay.phases]
    made_of_numbers = {v for phase in host for i in phase for v in i.outputs}
    fed = []
    for phase, outs in zip(phases, outputs, strict=True):
        read = [x for i in phase for x in i.inputs] + [*outs]
        fed.append([*dict.fromkeys(x for x in read if _is_var(x) and x in made_of_numbers)])
    more = [[*ins, *extra] for ins, extra in zip(inputs, fed, strict=True)]
    options = {"borrow": replay.borrow, "together": replay.together}
    inner, values = type(replay)(more, phases, outputs, **options), {}

    def run(k: int, *given: Any) -> list[Any]:
        pairs = zip(inputs[k], given, strict=True)
        values.update((v, x) for v, x in pairs if not _is_away(v.value))
        for i in host[k]:
            at = (values[x] if _is_var(x) else x for x in i.inputs)
            out = i.primitive.run(*at, **i.static)
            values.update(zip(i.outputs, out if i.primitive.many else (out,), strict=True))
        return list(inner.run[k](*given, *(values[v] for v in fed[k])))

    replay.run[:] = [partial(run, k) for k in range(len(phases))]
    replay.vectors = inner.vectors
    return inner.graphs


class Graphs:
    """What the phases of one replay share. why: the reason for which they run as they are, or None.

    ran: the graph that each phase ran as the last time, None for a plain run.
    """

    def __init__(self, replay: Any, inputs: Any, outputs: Any) -> None:
        self.run, self.space, self.borrow = replay.run, replay.space, replay.borrow
        self.vectors, self.together = replay.vectors, replay.together
        self.plain = list(replay.run)
        self.ran: list[Graph | None] = [None] * len(replay.run)
        self.pool: Any = None
        self.stream: Any = None
        flat = _members(replay.flat)
        self.why, self.phases = _refusal(flat), list[Phase]()
        if self.why is None:
            for k, (ins, outs) in enumerate(zip(inputs, outputs, strict=True)):
                read = {id(x) for i in flat for x in i.inputs}
                unread = {n for n, v in enumerate(ins) if id(v) not in read}
                phase = Phase(self, k, _numbers(ins, flat), _given(ins, outs), unread)
                self.phases.append(phase)
            self.run[:] = self.phases

    def run_plain(self, k: int, given: tuple[Any, ...]) -> list[Any]:
        self._ran(k, None, {})
        return list(self.plain[k](*given))

    def _ran(self, k: int, graph: Graph | None, vectors: dict[int, Any]) -> None:
        self.ran[k] = graph
        for n, (phase, _) in enumerate(self.together):
            if phase == k:
                self.vectors[n] = vectors.get(n)

    def give_up(self, why: str) -> None:
        """Run as it is from now on, and let go of all memory."""
        self.why, self.pool, self.run[:] = why, None, self.plain
        self.vectors[:] = [None] * len(self.vectors)
        for phase in self.phases:
            phase.graph = None


class Phase:
    """One phase: call it like the function of the replay.

    numbers: dtypes of the numbers among its inputs that a graph can read from the device. given:
    for each output, which input it is, if any. unread: inputs that nothing reads. moved: inputs
    whose addresses change too often for a graph to read them where they are, such as minibatches.
    since: launches until the last capture.
    """

    def __init__(
        self, owner: Graphs, k: int, numbers: dict[int, Any], given: list[Any], unread: set[int]
    ) -> None:
        self.owner, self.k, self.numbers, self.given = owner, k, numbers, given
        self.unread = unread
        self.graph: Graph | None = None
        self.before: list[Any] | None = None
        self.moved: set[int] = set()
        self.captures = self.launches = self.since = 0

    def __call__(self, *given: Any) -> list[Any]:
        owner, graph, misfit = self.owner, self.graph, "the phase before it changed too"
        if owner.why:  # of a caller who holds on to a phase
            return owner.run_plain(self.k, given)
        if graph is not None and graph.base == owner.ran[: self.k]:
            misfit = graph.misfit(given)
            if not misfit:
                self.launches += 1
                return graph.launch(given)
        here = [_place(x) for x in given]
        warm = self.before is not None and None not in owner.ran[: self.k]
        if self.launches - self.since < LAUNCHES:
            pairs = enumerate(zip(self.before or here, here, strict=True))
            self.moved |= {i for i, (before, now) in pairs if before != now} - self.unread
        self.before = here
        if warm and self.captures >= CAPTURES + self.launches // LAUNCHES:
            owner.give_up(f"{self.captures} captures for {self.launches} launches: {misfit}")
        if not warm or owner.why:
            return owner.run_plain(self.k, given)
        return self._captured(given)

    def _captured(self, given: tuple[Any, ...]) -> list[Any]:
        """A plain run, and then the same as a graph, which is kept if the bits are."""
        owner, self.graph, self.since = self.owner, None, self.launches
        self.captures += 1
        wanted = owner.run_plain(self.k, given)
        names = dict(owner.space)
        try:
            graph = Graph(self, given)
            found = graph.launch(given)
            why = "" if _same_bits(found, wanted) else "a graph gave other bits than a plain run"
        except Exception as error:  # whatever CUDA, CuPy or memory have against it
            why = f"{type(error).__name__}: {error}"
        if not why:
            self.graph = graph
            return found
        owner.space.update(names)  # of what later phases read
        owner.give_up(why)
        return wanted


class Graph:
    """One capture of a phase, at addresses that it was given or copies to."""

    def __init__(self, phase: Phase, given: tuple[Any, ...]) -> None:
        self.phase, self.owner, self.held = phase, phase.owner, ()
        self.base = self.owner.ran[: phase.k]
        self.last = phase.k + 1 == len(self.owner.plain)
        self.here = [_place(x) for x in given]
        self.bits = {i: _bits(x) for i, x in enumerate(given) if self.here[i] is None}
        self.twins = twins_of(given, [i for i in phase.moved if self.here[i]])
        self.buffers = {i: x for twin in self.twins for i, x in twin.parts.items()}
        like = next((x for x in given if homes.is_away(x)), None)
        if like is None:
            raise ValueError("nothing that it is given is on the device")
        self.kind, cupy = type(like), homes.module_of(like)
        self.cells = {i: cupy.full((), given[i], d) for i, d in phase.numbers.items()}
        inside = {**dict(enumerate(given)), **self.buffers, **self.cells}
        run = partial(self._run, cupy, [*inside.values()])
        self.launchable, (self.outputs, self.vectors) = _capture(cupy, self.owner, run)
        self.copied = [type(x) is self.kind and not (self.owner.borrow and x.ndim)
                       for x in self.outputs]  # fmt: skip
        made_here = [x for x, i in zip(self.outputs, phase.given, strict=True) if i is None]
        arrays = [[x for x in xs if type(x) is self.kind] for xs in (made_here, inside.values())]
        if any(cupy.may_share_memory(x, y) for x in arrays[0] for y in arrays[1]):
            raise ValueError("an output is a view of an input")

    def _run(self, cupy: Any, inside: list[Any]) -> tuple[list[Any], dict[int, Any]]:
        """(Outputs, those that are wanted in one vector, by the number of the wish)."""
        self.outputs, k = self.owner.plain[self.phase.k](*inside), self.phase.k
        wanted = [(n, s) for n, (phase, s) in enumerate(self.owner.together) if phase == k]
        return self.outputs, {n: self._joined(cupy, s) for n, s in wanted}

    def misfit(self, given: tuple[Any, ...]) -> str:
        """What keeps a launch from standing for a run on these inputs; empty where nothing does."""
        for i, (x, place) in enumerate(zip(given, self.here, strict=True)):
            if i in self.phase.unread:
                continue
            if place is None:
                if i not in self.cells and _bits(x) != self.bits[i]:
                    return f"input {i} changes, and is no array on the device"
            elif type(x) is not self.kind or x.strides != place[1]:
                return f"input {i} comes with other strides"
            elif x.data.ptr != place[0] and i not in self.buffers:
                return f"input {i} comes at other addresses"
        return ""

    def launch(self, given: tuple[Any, ...]) -> list[Any]:
        """What a run returns: arrays of its own, or with `borrow` those of the next launch too."""
        for twin in self.twins:
            twin.fill(given)
        for i, cell in self.cells.items():
            if (bits := _bits(given[i])) != self.bits[i]:
                cell.fill(given[i])
                self.bits[i] = bits
        self.launchable.launch()
        self.owner._ran(self.phase.k, self, self.vectors)
        if not self.last:  # a later phase may read these where they are
            self.held = given
        ends = zip(self.outputs, self.phase.given, self.copied, strict=True)
        return [
            given[i] if i is not None else x.copy("K") if copied else x for x, i, copied in ends
        ]

    def _joined(self, cupy: Any, some: slice) -> Any:
        """The outputs that are wanted in one vector, copied to one; None where that cannot be."""
        parts = self.outputs[some]
        away = all(map(homes.is_away, parts))
        if not (away and self.owner.borrow and len({x.dtype for x in parts}) == 1):
            return None
        ends = np.cumsum([0, *(x.size for x in parts)]).tolist()
        vector = cupy.empty(ends[-1], parts[0].dtype)
        for x, lo, hi in zip(parts, ends, ends[1:], strict=False):
            vector[lo:hi].reshape(x.shape)[...] = x
        return vector


def _capture(cupy: Any, owner: Graphs, run: Callable[[], Any]) -> tuple[Any, Any]:
    """(Graph of what run() launches, what it returned).

    It is run as it is before, on the same stream and handle of cuBLAS: so what is compiled, loaded
    or allocated at a first use is there.
    """
    from revgrad._ext import products

    if owner.pool is None:
        owner.pool, owner.stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
    stream, pool, ready = owner.stream, owner.pool, cupy.cuda.Event()
    ready.record(cupy.cuda.get_current_stream())
    with _one_at_a_time, products.on(stream), stream, cupy.cuda.using_allocator(pool.malloc):
        stream.wait_event(ready)
        run()
        stream.synchronize()
        with _undisturbed(cupy):
            stream.begin_capture()
            try:
                found = run()
            except BaseException:
                with suppress(Exception):  # which may say only that something went wrong before
                    stream.end_capture()
                raise
            return stream.end_capture(), found


@contextmanager
def _undisturbed(cupy: Any) -> Iterator[None]:
    """No garbage collection, which may free memory; no pinned memory for this thread, from which
    CuPy copies to the device: every launch would, when it has long been used for something else."""
    thread, pinned = threading.get_ident(), cupy.get_default_pinned_memory_pool().malloc

    def refuse(size: int) -> Any:
        if threading.get_ident() == thread:
            raise ValueError("it copies from the host's memory")
        return pinned(size)

    collecting = gc.isenabled()
    gc.disable()
    cupy.cuda.set_pinned_memory_allocator(refuse)
    try:
        yield
    finally:
        cupy.cuda.set_pinned_memory_allocator(pinned)
        if collecting:
            gc.enable()


# What a program says beforehand.


def _members(phase: list[Any]) -> list[Any]:
    """Its instructions one by one; those that run together are of NumPy's arrays."""
    return [member for i in phase for member in getattr(i, "members", [i])]


def _of_numbers(phases: list[list[Any]], inputs: Any) -> list[list[Any]]:
    """What each phase computes of inputs that are not on the device, alone."""
    known = {v for phase in inputs for v in phase if not _is_away(v.value)}
    here = lambda x: x in known if _is_var(x) else not _is_away(x)
    found: list[list[Any]] = []
    for phase in phases:
        found.append([])
        for i in _members(phase):
            if all(map(here, i.inputs)) and not any(_is_away(v.value) for v in i.outputs):
                found[-1].append(i)
                known.update(i.outputs)
    return found


def _refusal(instructions: list[Any]) -> str | None:
    if os.environ.get("REVGRAD_GRAPHS", "1") == "0":
        return "REVGRAD_GRAPHS is 0"
    for i in instructions:
        module = str(getattr(i.primitive.run, "__module__", None) or "numpy")  # ufuncs have none
        if not any(module == x or module.startswith(f"{x}.") for x in OURS):
            return f"{i.primitive.name} is not one of revgrad's own functions"
        if any(getattr(v.value, "nbytes", 0) > LARGEST for v in i.outputs):
            return f"arrays of more than {LARGEST} bytes: launches are not what takes time"
    return None


def _numbers(inputs: list[Any], instructions: list[Any]) -> dict[int, Any]:
    """Which inputs are numbers that meet nothing but arrays on the device, of which dtype.

    As an array of no axis such a number gives the same bits, and can change between launches.
    """
    found = {}
    for k, v in enumerate(inputs):
        readers = [i for i in instructions if any(x is v for x in i.inputs)]
        others = [x.value if _is_var(x) else x
                  for i in readers for x in i.inputs if x is not v]  # fmt: skip
        plain = all(_entry_by_entry(i.primitive.run) for i in readers)
        dtypes = {x.dtype if _is_away(x) else None for x in others}
        if _is_away(v.value) or not (plain and len(dtypes) == 1):
            continue
        (dtype,) = dtypes
        own = getattr(v.value, "dtype", None) or dtype  # a float takes that of the arrays
        if dtype is not None and dtype.kind == "f" and own == dtype and v.value.shape == ():
            found[k] = dtype
    return found


def _entry_by_entry(run: Any) -> bool:
    return run in ARITHMETIC or (isinstance(run, np.ufunc) and run.signature is None)


def _given(inputs: list[Any], outputs: list[Any]) -> list[Any]:
    return [next((k for k, v in enumerate(inputs) if v is x), None) for x in outputs]


def _is_var(x: Any) -> bool:
    return hasattr(x, "root")


def _is_away(value: Any) -> bool:
    kind = getattr(value, "kind", type(value))
    return kind.__module__.partition(".")[0] in homes.HOMES


# What a call says.


def _place(x: Any) -> tuple[int, tuple[int, ...]] | None:
    """Where an array on the device lies; None for all else."""
    return (x.data.ptr, x.strides) if homes.is_away(x) else None


def _bits(x: Any) -> Any:
    return type(x), np.asarray(x).tobytes() if hasattr(x, "dtype") else repr(x)


def _same_bits(found: list[Any], wanted: list[Any]) -> bool:
    same = lambda a, b: a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return all(same(homes.to_host(a), homes.to_host(b)) for a, b in zip(found, wanted, strict=True))
