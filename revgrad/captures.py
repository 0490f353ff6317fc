"""What a function captures: closure cells, the globals it names, defaults, and theirs."""

from functools import partial
from inspect import getattr_static
from types import CellType, CodeType, FunctionType, MethodType, ModuleType

import numpy as np
import optree

from revgrad.arrays import TracedIndex
from revgrad.tape import Box


def with_open_captures(f, use):
    """use(f); and once more with f's captured arrays in boxes, if a traced index met a plain one.

    `X[batch]` with a plain X and a traced batch does not reach us: NumPy asks the index to be an
    array. Boxed as a constant, X is asked instead. All else that is done with it folds as before.
    """
    try:
        return use(f)
    except TracedIndex:
        return use(lambda *args, **kwargs: _Opened(args, kwargs).open(f)(*args, **kwargs))


class _Opened:
    """Copies of functions whose captured arrays are constants of the recording that args are of."""

    def __init__(self, *args):
        boxes = [x for x in optree.tree_leaves(args) if isinstance(x, Box)]
        self.trace = min((_outermost(b) for b in boxes), key=lambda trace: trace.age)
        self.done, self.names = {}, set()

    def open(self, x):
        if id(x) not in self.done:
            self.done[id(x)] = x, self._open(x)  # x is kept, so that its id stays its own
        return self.done[id(x)][1]

    def _open(self, x):
        if isinstance(x, np.ndarray):
            return self.trace.constant(x)
        if not optree.tree_is_leaf(x):
            return optree.tree_map(self.open, x)
        if isinstance(x, FunctionType):
            return x if is_library(x) else self._open_function(x)
        if isinstance(x, MethodType):
            return MethodType(self.open(x.__func__), self.open(x.__self__))
        if isinstance(x, partial):
            return partial(self.open(x.func), *self.open(x.args), **self.open(x.keywords))
        if isinstance(x, (type, ModuleType)) or not hasattr(x, "__dict__"):
            return x
        return self.open(x.__wrapped__) if "__wrapped__" in vars(x) else self._open_object(x)

    def _open_object(self, x):
        """A shallow copy of an object, with arrays opened that the code names as attributes."""
        names = attribute_names(x, self.names) & vars(x).keys()
        attributes = {name: self.open(vars(x)[name]) for name in names}
        if all(vars(x)[name] is value for name, value in attributes.items()):
            return x
        copy = object.__new__(type(x))
        vars(copy).update({**vars(x), **attributes})
        return copy

    def _open_function(self, f):
        cells = tuple(CellType() for _ in f.__closure__ or ())
        space = dict(f.__globals__)
        copy = FunctionType(f.__code__, space, f.__name__, self.open(f.__defaults__), cells)
        self.done[id(f)] = f, copy  # a function may name itself
        self.names |= global_names(f.__code__)
        copy.__kwdefaults__ = self.open(f.__kwdefaults__)
        for cell, old in zip(cells, f.__closure__ or (), strict=True):
            try:
                cell.cell_contents = self.open(old.cell_contents)
            except ValueError:  # not bound yet
                continue
        for name in global_names(f.__code__) & f.__globals__.keys():
            space[name] = self.open(f.__globals__[name])
        return copy


def _outermost(box):
    """The oldest trace that observes a value: that of the recording, if there is one."""
    while isinstance(box.value, Box):
        box = box.value
    return box.trace


def captures(f):
    for cell in f.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not bound yet
            yield None
    yield from f.__defaults__ or ()
    yield from (f.__kwdefaults__ or {}).values()
    for name in global_names(f.__code__) & f.__globals__.keys():
        yield f.__globals__[name]


def global_names(code):
    """Names of globals and attributes in a function's code, and in those of functions inside."""
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*map(global_names, inner))


def attribute_names(x, names):
    """`names`, and those that the methods and properties of x with such names use in turn."""
    found, todo = set(), {"__call__", *names}
    while todo:
        name = todo.pop()
        found.add(name)
        member = getattr_static(type(x), name, None)
        member = getattr(member, "fget", None) or getattr(member, "__func__", member)
        if isinstance(member, FunctionType):
            todo |= global_names(member.__code__) - found
    return found


def is_library(f):
    """Whether f is a library's own; its wrappers of users' functions have closures."""
    library = (f.__module__ or "").split(".")[0] in ("numpy", "scipy", "revgrad", "optree")
    return library and not f.__closure__
