"""Statement lists as operations on blocks, so that a step passes over memory once.

`record` calls a statement's function with symbols and keeps what it does with them; `Plan` turns
statements, and the pull-back through them, into the operations of kernels.h. What depends on
hyperparameters alone is left to Python, operation by operation as written, so that every bit is
that of calling the function; so is what depends on the sums of a pull-back.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partialmethod
from typing import Any

import numpy as np

(
    PLUS, MINUS, TIMES, OVER, GREATER, LESS, EQUAL, NEGATE, ROOT, SAFE_ROOT, MAGNITUDE, SIGN, WHERE,
    COPY, DECODE, EMIT, ADD, SUBTRACT, SCALE, UNSCALE, WIDEN, NARROW, SUM,
) = range(23)  # fmt: skip
CONSTANT, REGISTER, DOUBLES, FLOATS = range(4)
SLOTS, VARIABLES = 160, 16  # the most that exact.Fused holds
REAL = {*range(DECODE + 1), WIDEN}  # operations whose `out` is a slot they fill with reals
CHANGES = {ADD, SUBTRACT, SCALE, UNSCALE}
LENGTH = object()  # of a vector that is not known yet

# What a block can do, by what a function may call; on floats all of it is exactly rounded.
OPERATIONS: dict[Any, int] = {
    operator.add: PLUS,
    operator.sub: MINUS,
    operator.mul: TIMES,
    operator.truediv: OVER,
    operator.gt: GREATER,
    operator.lt: LESS,
    operator.eq: EQUAL,
    operator.neg: NEGATE,
    operator.abs: MAGNITUDE,
    np.add: PLUS,
    np.subtract: MINUS,
    np.multiply: TIMES,
    np.divide: OVER,
    np.greater: GREATER,
    np.less: LESS,
    np.equal: EQUAL,
    np.negative: NEGATE,
    np.absolute: MAGNITUDE,
    np.fabs: MAGNITUDE,
    np.sign: SIGN,
    np.sqrt: ROOT,
    np.where: WHERE,
}


class NotFusible(Exception):
    """A statement does something that blocks cannot."""


class Symbol:
    """A real number or a vector of them that is not known yet: what a function was called with.

    made_by: the operation and its arguments, or a name that is read. late: a number that depends on
    the sum of a vector.
    """

    __slots__ = ("late", "made_by", "vector")
    dtype = np.dtype(np.float64)

    def __init__(self, *made_by: Any) -> None:
        self.made_by = made_by
        symbols = [x for x in made_by if isinstance(x, Symbol)]
        summed = made_by[0] is np.sum
        self.vector = not summed and any(x.vector for x in symbols)
        self.late = not self.vector and (summed or any(x.late for x in symbols))

    @property
    def shape(self) -> tuple:
        return (LENGTH,) if self.vector else ()

    @property
    def ndim(self) -> int:
        return int(self.vector)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if not all(isinstance(x, KNOWN) for x in inputs):
            return NotImplemented
        if method != "__call__" or options:
            raise NotFusible(f"{ufunc.__name__}.{method}")
        if ufunc is np.square:
            return Symbol(np.multiply, inputs[0], inputs[0])
        return Symbol(ufunc, *inputs)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        if not all(issubclass(kind, KNOWN) for kind in types):
            return NotImplemented  # a traced symbol answers for itself
        if function is np.where and len(args) == 3 and not options:
            return Symbol(np.where, *args)
        if function is np.sum and len(args) == 1 and options in ({}, {"axis": (0,)}):
            return Symbol(np.sum, self) if self.vector else self
        if function is np.ndim:
            return self.ndim
        if function is np.zeros_like:
            return 0.0
        raise NotFusible(function.__name__)

    def __bool__(self) -> bool:
        raise NotFusible("a decision that depends on a value")


KNOWN = (Symbol, int, float, np.generic, np.ndarray)


def _made(self: Symbol, op: Any, swapped: bool, *others: Any) -> Any:
    if not all(isinstance(x, KNOWN) for x in others):
        return NotImplemented
    return Symbol(op, *others, self) if swapped else Symbol(op, self, *others)


def _operators() -> None:
    """The operators, each as the function wrote it: x ** 2 is not always np.power(x, 2)."""
    names = (
        "add",
        "sub",
        "mul",
        "truediv",
        "pow",
        "gt",
        "lt",
        "ge",
        "le",
        "eq",
        "ne",
        "neg",
        "abs",
    )
    for name in names:
        op = getattr(operator, name)
        setattr(Symbol, f"__{name}__", partialmethod(_made, op, False))
        if name in names[:5]:
            setattr(Symbol, f"__r{name}__", partialmethod(_made, op, True))


_operators()


def is_vector(x: Any) -> bool:
    return isinstance(x, Symbol) and x.vector


def is_truth(x: Any) -> bool:
    """Whether x is a comparison: NumPy adds those as truths, blocks would as numbers."""
    return is_vector(x) and OPERATIONS.get(x.made_by[0]) in (GREATER, LESS, EQUAL)


def safe_root(x: Symbol) -> Any:
    """y, where x is where(y == 0, 0, sqrt(where(y == 0, ..., y))), or None."""
    op, *args = x.made_by
    if op is not np.where or repr(args[1]) not in ("0", "0.0") or not is_vector(args[2]):
        return None
    dark, inner = args[0], args[2].made_by
    if inner[0] is not np.sqrt or not is_vector(inner[1]) or inner[1].made_by[0] is not np.where:
        return None
    again, _, y = inner[1].made_by[1:]
    equal = is_vector(dark) and OPERATIONS.get(dark.made_by[0]) == EQUAL
    if again is dark and equal and dark.made_by[1] is y and repr(dark.made_by[2]) in ("0", "0.0"):
        return y
    return None


def record(function: Callable[..., Any], *args: Any, **reads: Any) -> Any:
    """What a function makes of symbols. Raises: NotFusible."""
    try:
        return function(*args, **reads)
    except NotFusible:
        raise
    except Exception as error:  # whatever a function does with what is no array
        raise NotFusible(str(error)) from error


class Numbers:
    """Symbols of numbers, to be evaluated one operation after the other, each once."""

    def __init__(self, wanted: Iterable[Any]) -> None:
        self._steps: list[tuple] = []
        self._index: dict[int, int] = {}
        self._kept: list[Any] = []
        self._wanted = [self._place(x) for x in wanted]
        symbols = [x for x in self._kept if isinstance(x, Symbol)]
        self.names = list(dict.fromkeys(x.made_by[0] for x in symbols if len(x.made_by) == 1))
        self.sums = any(x.made_by[0] is np.sum for x in symbols)

    def _place(self, x: Any) -> int:
        if id(x) not in self._index:
            if not isinstance(x, Symbol):
                step: tuple = (None, x)
            elif len(x.made_by) == 1 or x.made_by[0] is np.sum:
                step = (None, x)
            else:
                step = (x.made_by[0], [self._place(arg) for arg in x.made_by[1:]])
            self._steps.append(step)
            self._kept.append(x)
            self._index[id(x)] = len(self._steps) - 1
        return self._index[id(x)]

    def __call__(self, reads: dict[str, Any], sums: dict[int, Any] | None = None) -> list[Any]:
        """Their values. sums: of the vectors, by the id of np.sum's symbol."""
        values: list[Any] = []
        for op, args in self._steps:
            if op is not None:
                values.append(op(*[values[k] for k in args]))
            elif not isinstance(args, Symbol):
                values.append(args)
            elif sums is not None and id(args) in sums:
                values.append(sums[id(args)])
            else:
                values.append(reads[args.made_by[0]])
        return [values[k] for k in self._wanted]


def cotangent_before(
    name: str, statements: Sequence[Any], variables: Collection[str], pull: Callable[..., Any]
) -> Numbers | None:
    """The cotangent of a vector that statements read, made of what is known before that vector.

    statements: in the order of pulling back. Of cotangents ("ct NAME"), hyperparameters and factors
    ("factor NAME") alone; None where it depends on the vector itself, on a variable or on a sum.
    """
    vectors = {*variables, name}
    cts: dict[str, Any] = {target: _named(f"ct {target}", True) for target in variables}
    found: Any = 0.0
    try:
        for s in statements:
            if hasattr(s, "by"):
                cts[s.target] = cts[s.target] * _named(f"factor {s.target}")
                continue
            reads = {read: _named(read, read in vectors) for read in s.reads}
            for read, x in record(pull, s.delta, reads, cts[s.target]):
                if read in cts:
                    cts[read] = cts[read] + x
                elif read == name:
                    found = found + x
    except NotFusible:
        return None
    if not is_vector(found):
        return None
    made = Numbers([found])
    return None if made.sums or vectors & {*made.names} else made


def _named(name: str, vector: bool = False) -> Symbol:
    symbol = Symbol(name)
    symbol.vector = vector
    return symbol


class Point:
    """A statement, what it reads, and (a scale) what it scales: symbols, where it was executed."""

    __slots__ = ("before", "reads", "statement")

    def __init__(self, statement: Any, reads: dict[str, Symbol], before: Symbol | None) -> None:
        self.statement, self.reads, self.before = statement, reads, before


class Plan:
    """Statements (undone: the inverse of each) in the order given, as operations on blocks.

    statements: with `target`, `reads` and `delta` (an addition) or `by` (a scale). vectors: what is
    read as a vector, and its kind. emits: variables to decode at the end.
    pulled: statements to pull cotangents back through, each right after it is undone, or after all
    where they are done; those not among `statements` are taken as undone already. pull(function,
    reads, ct): pairs (name, cotangent) of what the function reads. into: kinds of the vectors that
    take cotangents of vectors read. wanted: names to find cotangents of; None: all.
    Attributes: operations (int32 rows); kinds and registers of slots; names of the arrays in slots;
    owner: the statement that each operation belongs to; scalars, numbers, names: the slots of
    numbers, their values, and what these depend on; sums: ids of the symbols that are summed;
    found, late: the names of numbers whose cotangents are wanted, and these.
    Raises: NotFusible.
    """

    def __init__(
        self,
        statements: Sequence[Any],
        variables: list[str],
        scaled: list[str],
        vectors: dict[str, int],
        emits: dict[str, int],
        undone: bool,
        pulled: Sequence[Any] = (),
        pull: Callable[..., Any] | None = None,
        into: dict[str, int] | None = None,
        wanted: Any = None,
    ) -> None:
        self.variables, self.scaled, self.undone = variables, scaled, undone
        self.rows: list[list[int]] = []
        self.owner: list[int] = []
        self.kinds: list[int] = []
        self.registers: list[int] = []
        self.arrays: dict[str, int] = {}
        self.scalars: list[int] = []
        self.sums: list[int] = []
        self._scalars: list[Any] = []
        self._known: dict[Any, int] = {}
        self._numbers: dict[Any, int] = {}  # of keys, so that equal values have one number
        self._ids: dict[int, int] = {}
        self._walked: set[int] = set()
        self._symbols: dict[str, Symbol] = {}
        self._vectors, self._into = vectors, into or {}
        self._kept: list[Any] = []  # symbols, so that no id is used twice
        self._pull, self._wanted = pull, wanted
        self._found: dict[str, Any] = {}
        self._cts = {name: self._read(f"ct {name}") for name in variables} if pull else {}
        self._execute(statements, pulled)
        owner = len(statements)
        for name in variables if pull else ():
            self._keep(owner, f"ct {name}", self._cts[name], DOUBLES)
        for name, kind in self._into.items():
            self._keep(owner, f"into {name}", self._found.pop(name, 0.0), kind)
        self.found = list(self._found)
        if any(is_vector(x) for x in self._found.values()):
            raise NotFusible("a number's cotangent is a vector")
        for name, kind in emits.items():
            self.arrays[f"out {name}"] = self._slot(kind, 0)
            self._emit(owner, name, self.arrays[f"out {name}"])
        if len(variables) > VARIABLES:
            raise NotFusible("too many variables")
        self.numbers = Numbers(self._scalars)
        self.names = self.numbers.names
        self.late = Numbers(self._found.values())
        self._drop_unused()
        self._share_registers()
        if len(self.kinds) > SLOTS:
            raise NotFusible("too many operands")
        self.operations = np.array(self.rows, np.int32).reshape(-1, 7)

    # Statements.

    def _execute(self, statements: Sequence[Any], pulled: Sequence[Any]) -> None:
        points: dict[int, Point] = {}
        seen: set[str] = set()
        left = list(enumerate(statements))
        if len({id(s) for s in statements}) < len(statements) and pulled:
            raise NotFusible("one statement twice")
        among = {id(s) for s in statements}
        for s in pulled if self.undone else ():
            while id(s) in among and id(s) not in points:
                k, now = left.pop(0)
                points[id(now)] = self._statement(k, now, seen)
            point = points.get(id(s)) or Point(s, self._read_all(s), self._before(s))
            self._pull_back(len(statements), point)
        for k, s in left:
            points[id(s)] = self._statement(k, s, seen)
        for s in () if self.undone else pulled:
            self._pull_back(len(statements), points[id(s)])

    def _read_all(self, s: Any) -> dict[str, Symbol]:
        names = s.reads if not hasattr(s, "by") or self._pull else ()
        return {name: self._read(name) for name in names}

    def _before(self, s: Any) -> Symbol | None:
        return self._read(s.target) if hasattr(s, "by") else None

    def _statement(self, k: int, s: Any, seen: set[str]) -> Point:
        """Execute one; what its pull-back reads is decoded before it changes."""
        point = Point(s, self._read_all(s), None)
        if self._pull is not None:
            if not self.undone:
                point.before = self._before(s)
            for x in (*point.reads.values(), point.before):
                if is_vector(x):
                    self._place(k, x)
        if hasattr(s, "by"):
            if s.target in seen:
                raise NotFusible("one variable is scaled twice, whose words would interleave")
            seen.add(s.target)
            self._row(k, UNSCALE if self.undone else SCALE, target=s.target)
        else:
            self._add(k, s.target, record(s.delta, **point.reads))
        self._forget(s.target)
        if self._pull is not None and self.undone:
            point.before = self._before(s)
        return point

    def _pull_back(self, owner: int, point: Point) -> None:
        """Pull the target's cotangent back to what the statement reads, and through a scale."""
        s, pull = point.statement, self._pull
        ct: Any = self._cts[s.target]
        assert pull is not None
        if hasattr(s, "by"):
            factor = self._read(f"factor {s.target}")
            ct_factor = ct * point.before
            if not factor.vector:
                ct_factor = np.sum(ct_factor)
            if isinstance(s.by, str):
                pairs = [(s.by, ct_factor)]
            else:
                pairs = list(record(pull, s.by, point.reads, ct_factor))
            self._cts[s.target] = ct * factor
            self._place(owner, self._cts[s.target])
        else:
            pairs = list(record(pull, s.delta, point.reads, ct))
        for name, x in pairs:
            if name in self._cts:
                self._cts[name] = self._sum(owner, self._cts[name], x)
            elif self._wanted is None or name in self._wanted:
                self._found[name] = self._sum(owner, self._found.get(name, 0.0), x)

    def _sum(self, owner: int, x: Any, y: Any) -> Any:
        """x + y, whose vectors are computed now, while what they are made of is as it is."""
        if not isinstance(y, Symbol) and y == 0:
            return x
        total = y if not isinstance(x, Symbol) and x == 0 else x + y
        self._place_vectors(owner, total)
        return total

    def _place_vectors(self, owner: int, x: Any) -> None:
        if is_vector(x):
            self._place(owner, x)
        elif isinstance(x, Symbol) and x.late and id(x) not in self._walked:
            self._walked.add(id(x))
            self._kept.append(x)
            if x.made_by[0] is np.sum:
                self._add_up(owner, x)
            else:
                for arg in x.made_by[1:]:
                    self._place_vectors(owner, arg)

    def _add_up(self, owner: int, x: Symbol) -> None:
        """The row that sums a vector, or a product of two as it is formed."""
        term = x.made_by[1]
        product = OPERATIONS.get(term.made_by[0]) == TIMES and all(map(is_vector, term.made_by[1:]))
        if product and self._key(term) not in self._known:
            slots = [self._place(owner, factor) for factor in term.made_by[1:]]
        else:
            slots = [self._vector(owner, term)]
        self._row(owner, SUM, *slots, out=len(self.sums))
        self.sums.append(id(x))

    def _keep(self, owner: int, name: str, x: Any, kind: int) -> None:
        """Write a vector to the array called `name`."""
        if isinstance(x, Symbol) and x.made_by == (name,):
            return
        source = self._vector(owner, x)
        out = self.arrays.get(name)
        if out is None or kind != DOUBLES:
            out = self.arrays[name] = self._slot(kind, 0)
        self._row(owner, NARROW if kind == FLOATS else COPY, source, out=out)

    def _add(self, owner: int, target: str, delta: Any) -> None:
        """A sum, which multiplies or divides and decodes a variable by itself."""
        op, factor = SUBTRACT if self.undone else ADD, -1
        if is_truth(delta):
            raise NotFusible("arithmetic with truths")
        parts = self._parts(delta, TIMES)
        if parts and not (is_vector(parts[0]) and is_vector(parts[1])):
            # floats are multiplied by numbers alone
            number, delta = parts if is_vector(parts[1]) else parts[::-1]
            factor = self._place(owner, number)
        for operation in (TIMES, OVER):
            parts = self._parts(delta, operation)
            if parts and all(map(is_vector, parts)) and (operation == OVER or factor < 0):
                slot, by = (self._place(owner, x) for x in parts)
                more = (by, -1) if operation == TIMES else (factor, by)
                self._row(owner, op, slot, *more, target=target)
                return
        name = delta.made_by[0] if is_vector(delta) else None
        source = 0
        if isinstance(name, str) and self._key(delta) not in self._known:
            if name in self.variables:
                source, slot = self.variables.index(name), -1
            else:
                slot = self._array(name)
        else:
            slot = self._vector(owner, delta)
        self._row(owner, op, slot, factor, target=target, out=source)

    def _parts(self, x: Any, operation: int) -> Any:
        """The two operands of x, where it is made by an operation and has no slot yet."""
        made = is_vector(x) and OPERATIONS.get(x.made_by[0]) == operation
        if not made or any(map(is_truth, x.made_by[1:])) or self._key(x) in self._known:
            return None
        return x.made_by[1:]

    def _row(self, owner: int, op: int, *slots: int, target: str = "", out: int = 0) -> None:
        operands = [*slots, -1, -1, -1][:3]
        variable = self.variables.index(target) if target else 0
        buffer = self.scaled.index(target) if op in (SCALE, UNSCALE) else -1
        self.rows.append([op, out, *operands, variable, buffer])
        self.owner.append(owner)

    # Values.

    def _slot(self, kind: int, register: int) -> int:
        self.kinds.append(kind)
        self.registers.append(register)
        return len(self.kinds) - 1

    def _read(self, name: str) -> Symbol:
        if name not in self._symbols:
            symbol = self._symbols[name] = Symbol(name)
            symbol.vector = (
                name in self.variables or name in self._vectors or name.startswith("ct ")
            )
        return self._symbols[name]

    def _forget(self, name: str) -> None:
        """The variable changed: decode it again for the next statement that reads it."""
        self._symbols.pop(name, None)

    def _vector(self, owner: int, x: Any) -> int:
        """The slot of a value that has one real per element."""
        slot = self._place(owner, x)
        if self.kinds[slot] != CONSTANT:
            return slot
        out = self._slot(REGISTER, 0)
        self._row(owner, COPY, slot, out=out)
        return out

    def _place(self, owner: int, x: Any) -> int:
        """The slot of a value, with the operations that fill it."""
        key = self._key(x)
        if key not in self._known:
            self._known[key] = self._fill(owner, x)
        return self._known[key]

    def _key(self, x: Any) -> int:
        """One number for equal values: what was computed once serves again."""
        if id(x) in self._ids:
            return self._ids[id(x)]
        if not isinstance(x, Symbol):
            key: tuple = ("number", type(x), repr(x))
        elif len(x.made_by) == 1:
            key = ("name", id(x))
        else:
            key = (x.made_by[0], *(self._key(arg) for arg in x.made_by[1:]))
        number = self._numbers.setdefault(key, len(self._numbers))
        if isinstance(x, Symbol):
            self._ids[id(x)] = number
            self._kept.append(x)
        return number

    def _fill(self, owner: int, x: Any) -> int:
        if not is_vector(x):
            if not isinstance(x, Symbol) and np.ndim(x):
                raise NotFusible("an array that is no argument")
            if isinstance(x, Symbol) and x.late:
                raise NotFusible("a sum that a vector depends on")
            slot = self._slot(CONSTANT, 0)
            self.scalars.append(slot)
            self._scalars.append(x)
            return slot
        if len(x.made_by) == 1:
            return self._fill_name(owner, x.made_by[0])
        op, *args = x.made_by
        if (root := safe_root(x)) is not None:
            slot, out = self._place(owner, root), self._slot(REGISTER, 0)
            self._row(owner, SAFE_ROOT, slot, out=out)
            return out
        if op not in OPERATIONS:
            raise NotFusible(getattr(op, "__name__", str(op)))
        if any(is_truth(arg) for arg in args[OPERATIONS[op] == WHERE :]):
            raise NotFusible("arithmetic with truths")
        slots = [self._place(owner, arg) for arg in args]
        if self.kinds[slots[0]] == CONSTANT and OPERATIONS[op] == WHERE:
            raise NotFusible("where on a scalar")
        out = self._slot(REGISTER, 0)
        self._row(owner, OPERATIONS[op], *slots, out=out)
        return out

    def _fill_name(self, owner: int, name: str) -> int:
        if name not in self.variables:
            slot = self._array(name)
            if self.kinds[slot] != FLOATS:
                return slot
            out = self._slot(REGISTER, 0)
            self._row(owner, WIDEN, slot, out=out)
            return out
        out = self._slot(REGISTER, 0)
        self._row(owner, DECODE, target=name, out=out)
        return out

    def _array(self, name: str) -> int:
        if name not in self.arrays:
            self.arrays[name] = self._slot(self._vectors.get(name, DOUBLES), 0)
        return self.arrays[name]

    def _emit(self, owner: int, name: str, slot: int) -> None:
        """Decode a variable to an array, where it was last changed if that is a sum."""
        variable = self.variables.index(name)
        changes = [row for row in self.rows if row[0] in CHANGES and row[5] == variable]
        if changes and changes[-1][0] in (ADD, SUBTRACT):
            changes[-1][6] = slot
        else:
            self._row(owner, EMIT, target=name, out=slot)

    # Registers: few, so that they stay in the first cache.

    def _drop_unused(self) -> None:
        """Leave out what fills a register that nothing reads."""
        read: set[int] = set()
        kept = []
        for row, owner in zip(reversed(self.rows), reversed(self.owner), strict=True):
            op, out, *operands = row[:5]
            if op in REAL and self.kinds[out] == REGISTER and out not in read:
                continue
            read.update(operands)
            kept.append((row, owner))
        self.rows = [row for row, _ in reversed(kept)]
        self.owner = [owner for _, owner in reversed(kept)]

    def _share_registers(self) -> None:
        """Give each slot a register, and that to others after the last row that reads it."""
        last = {slot: k for k, row in enumerate(self.rows) for slot in row[2:5]}
        free: list[int] = []
        used = 0
        for k, row in enumerate(self.rows):
            ends = {x for x in row[2:5] if x >= 0 and self.kinds[x] == REGISTER and last[x] == k}
            free.extend(self.registers[slot] for slot in sorted(ends))
            if row[0] in REAL and self.kinds[row[1]] == REGISTER:
                if not free:
                    free.append(used)
                    used += 1
                self.registers[row[1]] = free.pop()
