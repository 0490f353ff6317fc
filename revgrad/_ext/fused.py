"""Statement lists as operations on blocks, so that a step passes over memory once.

`record` calls a statement's function with symbols and keeps what it does with them; `Plan` turns
statements into the operations of kernels.h. What depends on hyperparameters alone is left to
Python, operation by operation as written, so that every bit is that of calling the function.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

(
    PLUS, MINUS, TIMES, OVER, GREATER, LESS, EQUAL, NEGATE, ROOT, MAGNITUDE, WHERE, COPY,
    DECODE, EMIT, ADD, SUBTRACT, SCALE, UNSCALE,
) = range(18)  # fmt: skip
CONSTANT, REGISTER, DOUBLES, FLOATS = range(4)
SLOTS, VARIABLES = 64, 16  # the most that exact.Fused holds

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
    np.sqrt: ROOT,
    np.where: WHERE,
}


class NotFusible(Exception):
    """A statement does something that blocks cannot."""


class Symbol:
    """A real number or a vector of them that is not known yet: what a function was called with.

    made_by: the operation and its arguments, or a name that is read.
    """

    __slots__ = ("made_by", "vector")

    def __init__(self, *made_by: Any) -> None:
        self.made_by = made_by
        self.vector = any(isinstance(x, Symbol) and x.vector for x in made_by)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or options:
            raise NotFusible(f"{ufunc.__name__}.{method}")
        if ufunc is np.square:
            return Symbol(np.multiply, inputs[0], inputs[0])
        return Symbol(ufunc, *inputs)

    def __array_function__(self, function: Any, _types: Any, args: Any, options: Any) -> Any:
        if function is not np.where or options or len(args) != 3:
            raise NotFusible(function.__name__)
        return Symbol(np.where, *args)

    def __bool__(self) -> bool:
        raise NotFusible("a decision that depends on a value")


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
        setattr(Symbol, f"__{name}__", lambda *args, op=op: Symbol(op, *args))
        if name in names[:5]:
            setattr(Symbol, f"__r{name}__", lambda x, y, op=op: Symbol(op, y, x))


_operators()


def is_vector(x: Any) -> bool:
    return isinstance(x, Symbol) and x.vector


def is_truth(x: Any) -> bool:
    """Whether x is a comparison: NumPy adds those as truths, blocks would as numbers."""
    return is_vector(x) and OPERATIONS.get(x.made_by[0]) in (GREATER, LESS, EQUAL)


def record(function: Callable[..., Any], reads: dict[str, Symbol]) -> Any:
    """What a function makes of symbols. Raises: NotFusible."""
    try:
        return function(**reads)
    except NotFusible:
        raise
    except Exception as error:  # whatever a function does with what is no array
        raise NotFusible(str(error)) from error


class Plan:
    """Statements (undone: the inverse of each) in the order given, as operations on blocks.

    statements: with `target`, `reads` and `delta` (an addition) or `by` (a scale). vectors: the
    names that are read as vectors. emits: variables to decode at the end.
    Attributes: operations (int32 rows); kinds and registers of slots; names of the arrays in slots;
    owner: the statement that each operation belongs to; scalars: (slot, symbol) to evaluate.
    Raises: NotFusible.
    """

    def __init__(
        self,
        statements: Iterable[Any],
        variables: list[str],
        scaled: list[str],
        vectors: dict[str, int],
        emits: dict[str, int],
        undone: bool,
    ) -> None:
        self.variables, self.scaled, self.undone = variables, scaled, undone
        self.rows: list[list[int]] = []
        self.owner: list[int] = []
        self.kinds: list[int] = []
        self.registers: list[int] = []
        self.arrays: dict[str, int] = {}
        self.scalars: list[tuple[int, Any]] = []
        self._known: dict[Any, int] = {}
        self._symbols: dict[str, Symbol] = {}
        self._vectors = vectors
        self._kept: list[Any] = []  # symbols, so that no id is used twice
        seen: set[str] = set()
        for k, s in enumerate(statements):
            if hasattr(s, "by"):
                if s.target in seen:
                    raise NotFusible("one variable is scaled twice, whose words would interleave")
                seen.add(s.target)
                self._row(k, UNSCALE if undone else SCALE, target=s.target)
            else:
                delta = record(s.delta, {name: self._read(name) for name in s.reads})
                self._add(k, s.target, delta)
            self._forget(s.target)
        for name, kind in emits.items():
            self.arrays[f"out {name}"] = self._slot(kind, 0)
            self._row(len(self.owner), EMIT, target=name, out=self.arrays[f"out {name}"])
        if len(self.kinds) > SLOTS or len(variables) > VARIABLES:
            raise NotFusible("too many operands")
        self.operations = np.array(self.rows, np.int32).reshape(-1, 7)

    def _add(self, owner: int, target: str, delta: Any) -> None:
        """A sum, which multiplies by a number and decodes a variable by itself."""
        op, factor, source = SUBTRACT if self.undone else ADD, -1, 0
        if is_truth(delta):
            raise NotFusible("arithmetic with truths")
        if isinstance(delta, Symbol) and OPERATIONS.get(delta.made_by[0]) == TIMES:
            numbers = [x for x in delta.made_by[1:] if not is_vector(x)]
            if len(numbers) == 1 and not any(is_truth(x) for x in delta.made_by[1:]):
                factor = self._place(owner, numbers[0])
                delta = next(x for x in delta.made_by[1:] if is_vector(x))
        if is_vector(delta) and delta.made_by[0] in self.variables:
            source, slot = self.variables.index(delta.made_by[0]), -1
        else:
            slot = self._vector(owner, delta)
        self._row(owner, op, slot, factor, target=target, out=source)

    def _row(self, owner: int, op: int, *slots: int, target: str = "", out: int = 0) -> None:
        operands = [*slots, -1, -1, -1][:3]
        variable = self.variables.index(target) if target else 0
        buffer = self.scaled.index(target) if op in (SCALE, UNSCALE) else 0
        self.rows.append([op, out, *operands, variable, buffer])
        self.owner.append(owner)

    def _slot(self, kind: int, register: int) -> int:
        self.kinds.append(kind)
        self.registers.append(register)
        return len(self.kinds) - 1

    def _register(self) -> int:
        return self._slot(REGISTER, sum(kind in (REGISTER, FLOATS) for kind in self.kinds))

    def _read(self, name: str) -> Symbol:
        if name not in self._symbols:
            symbol = self._symbols[name] = Symbol(name)
            symbol.vector = name in self.variables or name in self._vectors
        return self._symbols[name]

    def _forget(self, name: str) -> None:
        """The variable changed: decode it again for the next statement that reads it."""
        self._symbols.pop(name, None)

    def _vector(self, owner: int, x: Any) -> int:
        """The slot of a value that has one real per element."""
        slot = self._place(owner, x)
        if self.kinds[slot] != CONSTANT:
            return slot
        out = self._register()
        self._row(owner, COPY, slot, out=self.registers[out])
        return out

    def _place(self, owner: int, x: Any) -> int:
        """The slot of a value, with the operations that fill it."""
        key = self._key(x)
        if key not in self._known:
            self._known[key] = self._fill(owner, x)
            self._kept.append(x)
        return self._known[key]

    def _key(self, x: Any) -> Any:
        """Equal for equal values: what was computed once serves again."""
        if not isinstance(x, Symbol):
            return ("number", type(x), repr(x))
        if len(x.made_by) == 1:
            return id(x)
        return (x.made_by[0], *(self._key(arg) for arg in x.made_by[1:]))

    def _fill(self, owner: int, x: Any) -> int:
        if not is_vector(x):
            if not isinstance(x, Symbol) and np.ndim(x):
                raise NotFusible("an array that is no argument")
            slot = self._slot(CONSTANT, 0)
            self.scalars.append((slot, x))
            return slot
        if len(x.made_by) == 1:
            return self._fill_name(owner, x.made_by[0])
        op, *args = x.made_by
        if op not in OPERATIONS:
            raise NotFusible(getattr(op, "__name__", str(op)))
        if any(is_truth(arg) for arg in args[OPERATIONS[op] == WHERE :]):
            raise NotFusible("arithmetic with truths")
        slots = [self._place(owner, arg) for arg in args]
        if self.kinds[slots[0]] == CONSTANT and OPERATIONS[op] == WHERE:
            raise NotFusible("where on a scalar")
        out = self._register()
        self._row(owner, OPERATIONS[op], *slots, out=self.registers[out])
        return out

    def _fill_name(self, owner: int, name: str) -> int:
        if name in self.variables:
            out = self._register()
            self._row(owner, DECODE, target=name, out=self.registers[out])
            return out
        if name not in self.arrays:
            kind = self._vectors[name]
            self.arrays[name] = self._register() if kind == FLOATS else self._slot(kind, 0)
            self.kinds[self.arrays[name]] = kind
        return self.arrays[name]


def evaluate(x: Any, reads: dict[str, Any]) -> Any:
    """A symbol's value, by the operations that made it."""
    if not isinstance(x, Symbol):
        return x
    if len(x.made_by) == 1:
        return reads[x.made_by[0]]
    return x.made_by[0](*(evaluate(arg, reads) for arg in x.made_by[1:]))
