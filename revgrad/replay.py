"""Turn a recorded program into straight-line calls on buffers that are made once.

Every instruction becomes one line of Python: a ufunc or product with out=, a view made beforehand,
or a plain call. Buffers are handed on as soon as their value is dead, and an elementwise result
takes over a dying operand of its own shape, so that a step of training stays in cache.
"""

import operator

import numpy as np

from revgrad._ext import graphs
from revgrad.fuse import Group
from revgrad.narrow import NARROW, NarrowProduct
from revgrad.record import Var, kind_of, value_of
from revgrad.rules.linear import getitem, take
from revgrad.stacked import STACKED, StackedProduct

# Operators on arrays are these ufuncs; on scalars they are not, and ** has shortcuts of its own.
_UFUNCS = {
    operator.add: np.add,
    operator.sub: np.subtract,
    operator.mul: np.multiply,
    operator.truediv: np.divide,
    operator.neg: np.negative,
    operator.matmul: np.matmul,
    operator.lt: np.less,
    operator.le: np.less_equal,
    operator.gt: np.greater,
    operator.ge: np.greater_equal,
    operator.eq: np.equal,
    operator.ne: np.not_equal,
}
_REDUCTIONS = {"sum": np.add.reduce, "max": np.maximum.reduce, "min": np.minimum.reduce}
NEVER = float("inf")
KEPT = 2**20  # bytes of an input that may be kept alive by its views, for the next call
LARGE = 2**12  # bytes from which taking rows into a buffer is faster than making a new array


class Replay:
    """A program bound to buffers of its own; not for two threads at once.

    phases: lists of instructions, run one after the other by `run[k](*inputs of phase k)`; what a
    later phase needs of an earlier one is kept in place until that one runs again.
    Of arrays on a GPU it becomes CUDA graphs, unless `graphs.why` says why not.
    inputs, outputs: one list per phase. borrow: outputs are buffers, overwritten by the next run.
    together: pairs (phase, slice of its outputs) to put one after the other into one vector.
    vectors: these; None where that cannot be, as an output is no array made here, or made twice.
    replaces: per phase, (output, input) by their places: the output is written over that input, an
    array like it that no later phase reads. Of arrays on a GPU nothing is: see `put`.
    """

    def __init__(self, inputs, phases, outputs, *, borrow=False, together=(), replaces=()):
        self.given, self.together, self.replaces = (inputs, phases, outputs), together, replaces
        self.names, self.space = {}, {}
        self.pool, self.raw = {}, {}  # free memory by size; memory in use by Var
        self.owned, self.fixed = set(), set()  # Vars with a buffer; and views of these
        self.homes = {}  # Var -> the part of a vector that it must live in
        self.vectors = [_vector(outputs[k][s], self.homes) for k, s in together]
        ways = list(zip(inputs, outputs, replaces, strict=False))
        pairs = [(out[k], ins[j]) for ins, out, places in ways for k, j in places]
        self.into = {
            x: y for x, y in pairs if isinstance(x, Var) and kind_of(y.value) is np.ndarray
        }
        self.phases, self.borrow = phases, borrow
        self.flat = [i for phase in phases for i in phase]
        self.last = self._last_uses(inputs, outputs)
        self.inputs = {x for phase in inputs for x in phase}
        for k, v in enumerate(x for phase in inputs for x in phase):
            self.names[v] = f"a{k}"
        at = 0
        self.source = []
        for k, phase in enumerate(phases):
            self.lines, self.made = [], []
            small = [self.names[v] for v in inputs[k] if _nbytes(v.value) <= KEPT]
            self.cached = dict(zip(small, small, strict=True))  # view -> input that it is kept with
            for i in phase:
                self._emit(i, at)
                at += 1
            self._put_back(*ways[k] if k < len(ways) else ((), (), ()))
            self._finish(k, inputs[k], outputs[k])
            self.names |= self.renamed
        exec(compile("\n".join(self.source), "<replay>", "exec"), self.space)
        self.run = [self.space[f"phase{k}"] for k in range(len(phases))]
        for n, (k, s) in enumerate(together):
            if self.vectors[n] is not None and not self.owned.issuperset(outputs[k][s]):
                self.vectors[n] = None
        self.graphs = graphs.made(self, inputs, outputs)

    def twin(self, apart=None):
        """Another replay of the same program that has its memory, but for the vectors.

        apart: arrays in whose place, instead of the vectors, it has some of its own.
        """
        options = {"together": self.together, "replaces": self.replaces}
        other = Replay(*self.given, borrow=self.borrow, **options)
        apart = {id(_memory(x)) for x in (self.vectors if apart is None else apart)}
        for x in self.fixed:
            mine = self.space[self.names[x]]
            if id(_memory(mine)) not in apart:
                other.space[other.names[x]] = mine
        return other

    # Lifetimes.

    def _last_uses(self, inputs, outputs):
        """Root -> index of the last instruction that reads it; NEVER dead if a later phase does."""
        last, at, phase_of = {}, 0, {}
        for k, phase in enumerate(self.phases):
            for i in phase:
                for v in i.outputs:
                    phase_of[v.root] = k
                for x in i.inputs:
                    if isinstance(x, Var):
                        later = phase_of.get(x.root, k) != k
                        last[x.root] = NEVER if later else max(at, last.get(x.root, at))
                at += 1
            for x in outputs[k]:
                if isinstance(x, Var):
                    last[x.root] = NEVER
        for x in (x for phase in inputs for x in phase if x not in self.into.values()):
            last[x.root] = NEVER
        return last

    # Buffers.

    def _buffer(self, var):
        value = var.value
        if var in self.homes:
            self._own(var, self.homes[var], None)
            return self.names[var]
        raw = self.pool.get(value.nbytes)
        raw = raw.pop() if raw else _aligned(value.nbytes)
        array = np.ndarray(value.shape, value.dtype, raw, strides=value.strides)
        self._own(var, array, raw)
        return self.names[var]

    def _own(self, var, array, raw):
        name = self.names[var] = f"b{len(self.space)}"
        self.space[name] = array
        self.owned.add(var)
        self.fixed.add(var)
        self.raw[var] = raw

    def _take_over(self, out, dying, inputs, at):
        """Let an elementwise result live where an operand dies; says whether it does."""
        if out in self.homes:
            return False
        for x in dying:
            mine = isinstance(x, Var) and self.into.get(out) is x
            if not (mine or (isinstance(x, Var) and x in self.raw)) or self.last[x] != at:
                continue
            shared = any(isinstance(y, Var) and y is not x and y.root is x for y in inputs)
            if _layout(x.value) != _layout(out.value) or shared:
                continue
            if mine:
                self.names[out] = self.names[x]
            else:
                self._own(out, self.space[self.names[x]], self.raw.pop(x))
            return True
        return False

    def _free_after(self, i, at):
        roots = [x.root for x in i.inputs if isinstance(x, Var)]
        for x in dict.fromkeys([*roots, *i.outputs]):  # in an order that is always the same
            if x in self.raw and self.last.get(x, at) <= at:
                raw = self.raw.pop(x)
                self.pool.setdefault(raw.nbytes, []).append(raw)

    # Instructions.

    def _emit(self, i, at):
        if isinstance(i, Group):
            self._emit_group(i, at)
        else:
            self._emit_one(i, at)
        self._free_after(i, at)

    def _emit_group(self, group, at):
        """A chain on buffers; an output may take one over that no later member reads."""
        read_by = {
            x: k for k, i in enumerate(group.members) for x in i.inputs if isinstance(x, Var)
        }
        made_by = {v: k for k, i in enumerate(group.members) for v in i.outputs}
        for v in group.outputs:
            dying = [x for x in group.inputs if isinstance(x, Var) and read_by[x] <= made_by[v]]
            if not self._take_over(v, dying, group.inputs, at):
                self._buffer(v)
        self._line(group.chain(), map(self._name, [*group.inputs, *group.outputs]))

    def _emit_one(self, i, at):
        out, run = i.outputs[0], i.primitive.run
        if out.base is not None and not i.primitive.many:
            self._emit_view(i)
        elif i.primitive is STACKED:
            self._emit_product(StackedProduct(i.inputs[0].value, out.value), i)
        elif len(i.outputs) > 1 or not _can_own(out):
            self._emit_call(i)
        elif i.primitive is NARROW:
            self._emit_product(NarrowProduct(out.value), i)
        elif isinstance(ufunc := _UFUNCS.get(run, run), np.ufunc):
            elementwise = ufunc is not np.matmul
            if not (elementwise and self._take_over(out, i.inputs, i.inputs, at)):
                self._buffer(out)
            keyword = "out=" if ufunc in (np.maximum, np.minimum) else ""
            self._line(ufunc, [*map(self._name, i.inputs), f"{keyword}{self.names[out]}"])
        elif i.primitive.name in _REDUCTIONS:
            self.lines.append(self._reduction(i, self._buffer(out)))
        elif i.primitive.name == "concatenate":
            parts = ", ".join(map(self._name, i.inputs))
            self._line(np.concatenate, [f"({parts},)", repr(i.static["axis"]), self._buffer(out)])
        elif (rows := _rows(i)) is not None:
            self._line(gather, [*map(self._name, rows), self._buffer(out)])
        elif i.primitive.name == "astype":
            name = self._name(i.inputs[0])
            self._line(np.copyto, [self._buffer(out), name, "'unsafe'"])
        else:
            self._emit_call(i)

    def _emit_product(self, product, i):
        self._line(product, [*map(self._name, i.inputs), *map(self._buffer, i.outputs)])

    def _emit_view(self, i):
        out = i.outputs[0]
        name = self.names[out] = f"v{len(self.space)}"
        arguments, static = [self._name(x) for x in i.inputs], self._static(i)
        moving = sum(isinstance(x, Var) for x in i.inputs) > 1  # x[i], a row of x, by a traced i
        if out.base in self.fixed and not moving:
            values = [self.space[self._name(x)] for x in i.inputs]
            self.space[name] = i.primitive.run(*values, **i.static)
            self.fixed.add(out)
            return
        line = f"{name} = {self._function(i.primitive.run)}({', '.join([*arguments, *static])})"
        root = None if moving else self.cached.get(self.names[out.base])
        if root:
            self.cached[name] = root
            self.space.setdefault("_views", {}).setdefault((len(self.source), root), []).append(
                line
            )
            self.space[name] = None
        else:
            self.made.append(name)
            self.space[name] = None
            self.lines.append(line)

    def _emit_call(self, i):
        arguments = [self._name(x) for x in i.inputs]
        names = [f"t{len(self.space)}_{k}" for k in range(len(i.outputs))]
        self.names.update(zip(i.outputs, names, strict=True))
        self.made += names
        self.space.update(dict.fromkeys(names))
        of_numpy = issubclass(kind_of(value_of(i.inputs[0])), (np.ndarray, np.generic))
        if i.primitive.name in _REDUCTIONS and of_numpy:
            call = self._reduction(i, "None")
        else:
            arguments += self._static(i)
            call = f"{self._function(i.primitive.run)}({', '.join(arguments)})"
        self.lines.append(f"{', '.join(names)}{',' * i.primitive.many} = {call}")

    def _reduction(self, i, out):
        """The ufunc that np.sum, np.max and np.min call, after some Python that this leaves out."""
        function, x = self._function(_REDUCTIONS[i.primitive.name]), self._name(i.inputs[0])
        return f"{function}({x}, {i.static['axis']!r}, None, {out}, {i.static['keepdims']})"

    def _line(self, function, arguments):
        self.lines.append(f"{self._function(function)}({', '.join(arguments)})")

    def _static(self, i):
        return [f"{k}={self._constant(v)}" for k, v in i.static.items()]

    def _name(self, x):
        return self.names[x] if isinstance(x, Var) else self._constant(x)

    def _constant(self, x):
        if type(x) in (int, bool, type(None)):
            return repr(x)
        name = f"c{len(self.space)}"
        self.space[name] = x
        return name

    def _function(self, f):
        owner = (
            f"{f.__self__.__name__}_" if isinstance(getattr(f, "__self__", None), np.ufunc) else ""
        )
        name = f"{owner}{getattr(f, '__name__', type(f).__name__.lower())}".replace("<lambda>", "f")
        while self.space.setdefault(name, f) is not f:
            name += "_"
        return name

    def _put_back(self, inputs, outputs, places):
        """Copy what does not live yet where the input was that it replaces."""
        places = [(k, j) for k, j in places if kind_of(inputs[j].value) is np.ndarray]
        self.back = {k: self.names[inputs[j]] for k, j in places}
        pairs = [(outputs[k], self._name(outputs[k]), self.names[inputs[j]]) for k, j in places]
        pairs = [(x, here, there) for x, here, there in pairs if here != there]
        moved = [isinstance(x, Var) and x.root in inputs for x, *_ in pairs]
        for k, (_, here, _) in enumerate(pairs):  # before anything of theirs is overwritten
            if moved[k]:
                self.lines.append(f"put{k} = {here}.copy()")
        for k, (_, here, there) in enumerate(pairs):
            self._line(np.copyto, [there, f"put{k}" if moved[k] else here])

    # Phases.

    def _finish(self, k, inputs, outputs):
        head = [f"def phase{k}({', '.join(self.names[v] for v in inputs)}):"]
        if self.made and k + 1 < len(self.phases):
            head.append(f"    global {', '.join(self.made)}")
        for (phase, root), lines in self.space.get("_views", {}).items():
            if phase == len(self.source):
                names = [line.split(" = ")[0] for line in lines]
                last = f"last_{root}"
                self.space[last] = None
                head += [f"    global {', '.join([last, *names])}", f"    if {root} is not {last}:"]
                head += [f"        {line}" for line in [*lines, f"{last} = {root}"]]
        head += self._keep_inputs(k, inputs)
        results = ", ".join(self._results(outputs))
        body = [f"    {line}" for line in self.lines]
        self.source.append("\n".join([*head, *body, f"    return [{results}]"]))

    def _keep_inputs(self, k, inputs):
        """Lines that keep this phase's inputs for later ones, which know them by another name."""
        later = {
            x
            for phase in self.phases[k + 1 :]
            for i in phase
            for x in i.inputs
            if isinstance(x, Var)
        }
        kept = {v: f"kept_{self.names[v]}" for v in inputs if v in later}
        lines = [f"    global {name}; {name} = {self.names[v]}" for v, name in kept.items()]
        self.renamed = kept
        return lines

    def _results(self, outputs):
        """Outputs are the caller's own: no buffers, no constants, no two of one memory."""
        given = set()
        for k, x in enumerate(outputs):
            if k in self.back:
                yield self.back[k]
                continue
            if isinstance(x, Var):
                owned = x.root in self.owned and not self.borrow
                shared = owned or (x.root in given and kind_of(x.value) is np.ndarray)
                given |= {x.root} - self.inputs
            else:
                shared = isinstance(x, np.ndarray)
            yield f"{self._name(x)}.copy('K')" if shared else self._name(x)


def put(results, places):
    """Results of a phase, written where they belong, unless `replaces` has done so already."""
    given = {id(x) for x in places}
    pairs = [(x, place) for x, place in zip(results, places, strict=False) if x is not place]
    pairs = [(x.copy() if id(x) in given else x, place) for x, place in pairs]
    for x, place in pairs:
        place[...] = x


def _vector(parts, homes):
    """A vector for all parts, their homes added to those; None where they cannot lie in one."""
    plain = all(isinstance(x, Var) and x.root is x and _can_own(x) for x in parts)
    if not (parts and plain and len(set(parts)) == len(parts) and homes.keys().isdisjoint(parts)):
        return None
    kinds = {x.value.dtype for x in parts}
    if len(kinds) > 1 or not all(_in_c_order(x.value) for x in parts):
        return None
    ends = np.cumsum([0, *(x.value.size for x in parts)]).tolist()
    vector = np.ndarray(ends[-1], kinds.pop(), _aligned(sum(x.value.nbytes for x in parts)))
    for x, lo, hi in zip(parts, ends, ends[1:], strict=False):
        homes[x] = vector[lo:hi].reshape(x.value.shape)
    return vector


def _rows(i):
    """(x, indices) of an instruction that `gather` does faster than x[indices], or None."""
    out = i.outputs[0].value
    by_getitem = i.primitive is getitem and len(i.inputs) == 2 and len(i.static["structure"]) == 1
    by_take = i.primitive is take and i.static["axis"] == 0
    if not (by_getitem or by_take) or out.nbytes < LARGE:
        return None
    x, indices = map(value_of, i.inputs)
    plain = kind_of(x) is np.ndarray and kind_of(indices) is np.ndarray
    fits = plain and indices.dtype == np.intp and _in_c_order(x) and _in_c_order(out)
    return i.inputs if fits else None


def gather(x, indices, out):
    """out[...] = x[indices], both in C order; errors are those of x[indices]."""
    if np.maximum.reduce(indices.view(np.uintp), None) < len(x):
        x.take(indices, 0, out, "clip")
    else:
        out[...] = x[indices]


def _memory(x):
    """What an array is a view of, at the bottom."""
    while getattr(x, "base", None) is not None:
        x = x.base
    return x


def _nbytes(x):
    return getattr(x, "nbytes", 0)


def _in_c_order(x):
    step = x.itemsize
    for stride, n in zip(x.strides[::-1], x.shape[::-1], strict=True):
        if stride != step and n > 1:
            return False
        step *= n
    return True


def _aligned(nbytes):
    """Bytes that begin on a cache line."""
    raw = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


def _layout(x):
    return x.shape, x.dtype, x.strides


def _can_own(var):
    """Whether a value can live in a buffer: an array of one axis or more, dense in some order."""
    x = var.value
    if kind_of(x) is not np.ndarray or x.ndim == 0 or var.base is not None or x.dtype.hasobject:
        return False
    step = x.itemsize
    for stride, n in sorted((s, n) for s, n in zip(x.strides, x.shape, strict=True) if n > 1):
        if stride != step:
            return False
        step *= n
    return x.size > 0
