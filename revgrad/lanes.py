"""Programs of two phases whose second phase takes many inputs at once, side by side in lanes.

What does not depend on the second inputs is computed once for all lanes. A lane is an index of a
leading axis; an instruction acts on all of them at once where it can, else lane by lane.
"""

import threading

import numpy as np

from revgrad._ext import homes
from revgrad.captures import with_open_captures
from revgrad.compiled import in_two
from revgrad.fuse import fuse
from revgrad.record import Program, Record, Var, forget, simplify
from revgrad.replay import Replay
from revgrad.rules.row import shape_of

WIDTHS = 1, 4, 16, 64  # how many lanes a program may be recorded for
AT_ONCE = WIDTHS[-1]
IN_CACHE = 2**18  # bytes that the largest value of the second phase may take, all lanes together


class Lanes:
    """f(*first) -> (outputs, then), as TwoPhase takes it; then(*second) -> results, in lanes.

    second: an example of each second input, in one lane. count: how many lanes will be asked for.
    together: as in Replay, of the outputs, and of the results in one lane.
    replaces: (result, second input) by their places: pairs of which the first is written over the
    second, as Replay has it.
    What is returned is overwritten by the next call in the same thread.
    """

    def __init__(self, f, first, second, count, *, together=(), replaces=()):
        self.local, self.together = threading.local(), together
        self.places = homes.of_lanes(second)
        self.parts = with_open_captures(f, lambda f: self._record(f, first, second, count))
        if self.places is not None:  # from now on what matters is where they are
            self.places = [homes.empty_beside(0, np.float64, x) for x in self.places]
        self.replaces = (), *([replaces] * len(self.widths))

    def _record(self, f, first, second, count):
        inputs, (early, late), ends, _ = in_two(f, first, lambda _: second)
        self.widths = [1] if self.places is None else _widths(late, count)
        one = inputs[1], late, ends[1]
        parts = [one, *(_across(width, self.places, *one) for width in self.widths[1:])]
        read = [x for _, some, outs in parts for x in (*outs, *_reads(some))]
        phases = [fuse(early, [*ends[0], *read]), *(fuse(some, outs) for _, some, outs in parts)]
        made = [i for _, some, _ in parts for i in some]
        every = [inputs[0], *(ins for ins, _, _ in parts)]
        self.needed = [v in set(_variables([*ends[0], *read, *_reads(early)])) for v in inputs[0]]
        forget([*early, *made], [v for some in every for v in some])
        return every, phases, [ends[0], *(outs for _, _, outs in parts)]

    def replay(self):
        if not hasattr(self.local, "replay"):
            options = {"together": self.together, "replaces": self.replaces}
            self.local.replay = Replay(*self.parts, borrow=True, **options)
        return self.local.replay

    def start(self, first):
        """Run phase 1; its outputs."""
        return self.replay().run[0](*first)

    def chunks(self, lo, hi):
        """Slices that cover lanes lo to hi, each as wide as some width that was recorded."""
        while lo < hi:
            width = next(w for w in self.widths[::-1] if w <= hi - lo)
            yield slice(lo, lo + width)
            lo += width

    def push(self, width, second):
        """Results of `width` lanes, with a leading axis unless it is 1; of the last `start`."""
        if width > 1:
            second = [homes.beside(x, at) for x, at in zip(second, self.places, strict=True)]
        return self.replay().run[1 + self.widths.index(width)](*second)


def _variables(xs):
    return [x for x in xs if isinstance(x, Var)]


def _reads(instructions):
    return [x for i in instructions for x in i.inputs]


def _widths(instructions, count):
    """Those of WIDTHS that are asked for, and fit the cache."""
    sizes = [getattr(v.value, "nbytes", 8) for i in instructions for v in i.outputs]
    if any(len(i.outputs) > 1 for i in instructions):
        return [1]
    most = min(AT_ONCE, count, IN_CACHE // max(1, *sizes, 8))
    return [k for k in WIDTHS if k <= max(1, most)]


def _across(count, places, inputs, instructions, outputs):
    """(inputs, instructions, outputs) of the second phase for `count` lanes.

    places: for each input, an array where its lanes are to be; see `homes.of_lanes`.
    """
    with Record() as trace:
        pairs = zip(inputs, places, strict=True)
        found = {v: trace.input(homes.beside(np.stack([v.value] * count), at)) for v, at in pairs}
        second = [found[v].node for v in inputs]
        for i in instructions:
            lanes = [isinstance(x, Var) and x in found for x in i.inputs]
            given = [
                found[x] if b else trace.box(x.value, trace, x) if isinstance(x, Var) else x
                for x, b in zip(i.inputs, lanes, strict=True)
            ]
            found[i.outputs[0]] = batched(i, given, lanes, count)
        results = [_in_lanes(x, found, trace, count) for x in outputs]
        pairs = [trace.unwrap(x) for x in results]
    out = [x if v is None else v for x, v in pairs]
    program = simplify(Program(second, trace.instructions, out))
    return second, program.instructions, program.outputs


def _in_lanes(x, found, trace, count):
    if isinstance(x, Var) and x in found:
        return found[x]
    x = trace.box(x.value, trace, x) if isinstance(x, Var) else x
    return np.broadcast_to(x, (count, *shape_of(x)))


# Instructions with a leading axis on some operands. A rule gets (instruction, operands, which have
# the axis, its length). Operands may be traced.


def batched(i, given, lanes, count):
    """What an instruction gives for operands of which some have a leading axis of `count` lanes."""
    if isinstance(i.primitive.run, np.ufunc) or i.primitive.name in _ELEMENTWISE:
        rule = _product if "matmul" in i.primitive.name else _elementwise
    else:
        rule = _RULES.get(i.primitive.name, _row_by_row)
    return rule(i, given, lanes, count)


def _elementwise(i, given, lanes, count):
    operands = _lifted(given, lanes, count, len(shape_of(i.outputs[0].value)))
    return i.primitive(*operands, **i.static)


def _lifted(operands, lanes, count, ndim):
    """Operands with the axis of lanes before all axes that the others may have, `ndim`."""
    return [
        np.reshape(x, (count, *(1,) * (ndim - len(shape_of(x)) + 1), *shape_of(x)[1:])) if b else x
        for x, b in zip(operands, lanes, strict=True)
    ]


def _product(i, given, lanes, count):
    if all(lanes):
        return _row_by_row(i, given, lanes, count)
    x, y = given
    x_ndim, y_ndim = len(shape_of(x)) - lanes[0], len(shape_of(y)) - lanes[1]
    if lanes[0] and x_ndim == 1 and y_ndim <= 2:  # vectors that make a matrix
        return np.matmul(x, y)
    operands = [
        np.expand_dims(x, -2) if x_ndim == 1 else x,
        np.expand_dims(y, -1) if y_ndim == 1 else y,
    ]
    out = np.matmul(*_lifted(operands, lanes, count, max(x_ndim, y_ndim, 2)))
    return np.squeeze(out, (-2,) * (x_ndim == 1) + (-1,) * (y_ndim == 1))


def _shaped(i, given, lanes, count):
    return i.primitive(given[0], shape=(count, *i.outputs[0].value.shape))


def _broadcast(i, given, lanes, count):
    shape = i.static["shape"]
    x = given[0].reshape(count, *(1,) * (len(shape) + 1 - given[0].ndim), *given[0].shape[1:])
    return np.broadcast_to(x, (count, *shape))


def _transposed(i, given, lanes, count):
    axes = i.static["axes"] or range(given[0].ndim - 1)[::-1]
    return np.transpose(given[0], (0, *(a % (given[0].ndim - 1) + 1 for a in axes)))


def _reduced(i, given, lanes, count):
    axis, ndim = i.static["axis"], given[0].ndim - 1
    if ndim == 0:  # NumPy reduces a number along axis 0 or -1, to itself
        return given[0]
    axes = range(ndim) if axis is None else np.atleast_1d(axis)
    axes = tuple(int(a) % ndim + 1 for a in axes)
    return i.primitive(given[0], axis=axes, keepdims=i.static["keepdims"])


def _concatenated(i, given, lanes, count):
    ndim = i.outputs[0].value.ndim
    parts = [
        x if b else np.broadcast_to(x, (count, *x.shape)) for x, b in zip(given, lanes, strict=True)
    ]
    return np.concatenate(parts, i.static["axis"] % ndim + 1)


def _same(i, given, lanes, count):
    return i.primitive(given[0], **i.static)


def _indexed(i, given, lanes, count):
    structure = i.static["structure"]
    if len(given) > 1 or not all(isinstance(part, slice) for part in structure):
        return _row_by_row(i, given, lanes, count)
    return i.primitive(given[0], structure=(slice(None), *structure))


def _row_by_row(i, given, lanes, count):
    rows = (
        i.primitive(*(x[k] if b else x for x, b in zip(given, lanes, strict=True)), **i.static)
        for k in range(count)
    )
    return np.stack(list(rows))


_ELEMENTWISE = {"add", "sub", "mul", "truediv", "neg", "where", "matmul"}
_RULES = {
    "reshape": _shaped,
    "broadcast_to": _broadcast,
    "transpose": _transposed,
    "sum": _reduced,
    "mean": _reduced,
    "concatenate": _concatenated,
    "astype": _same,
    "getitem": _indexed,
}
