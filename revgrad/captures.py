"""What a function captures: closure cells, the globals it names, defaults, and theirs."""

import sys
import zlib
from functools import partial
from inspect import getattr_static
from operator import is_
from types import (
    CellType,
    CodeType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    NoneType,
)

import numpy as np
import optree

from revgrad.arrays import TracedIndex
from revgrad.tape import Box

SAMPLE = 512  # entries of a large captured array that are looked at for changes
WHOLE = 2**16  # bytes up to which all are


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
    return box.owner


class Captured:
    """What functions and objects hold on to that their code may read."""

    def __init__(self, *roots):
        self.roots, self.look = roots, None

    def now(self):
        """Hashable, and equal as long as nothing has changed; None while something is traced.

        The walk is repeated only where a name is bound anew or an array's entries differ.
        """
        if self.look is None or not self.look.still_holds():
            self.look = _Look(self.roots)
        return self.look.print


class _Look:
    """One walk over captured values: its print, and what must stay for the print to hold.

    Of objects, classes and modules those attributes count that any of the functions met names.
    """

    def __init__(self, roots):
        self.names, names = set(), None
        while names != self.names:  # functions that are found late name attributes of early objects
            names = set(self.names)
            self.cells, self.items, self.sizes, self.rows = [], [], [], []
            self.slots, self.arrays, self.codes = [], [], []
            self.seen, self.traced = {}, False
            self.print = tuple(part for x in roots for part in self._walk(x))
        self.print = None if self.traced else (*self.print, _Held(self.seen))

    def still_holds(self):
        """Whether every name is bound to the same object and every array has the same entries."""
        try:
            return not self.traced and self._bindings_hold() and self._contents_hold()
        except ValueError:  # a cell was emptied, or is not filled yet
            return False

    def _bindings_hold(self):
        for cell, value in self.cells:
            if cell.cell_contents is not value:
                return False
        for mapping, name, value in self.items:
            if mapping.get(name, self) is not value:
                return False
        for x, name, value in self.slots:
            if getattr(x, name, None) is not value:
                return False
        return all(function.__code__ is code for function, code in self.codes)

    def _contents_hold(self):
        for x, size in self.sizes:
            if len(x) != size:
                return False
        for x, row in self.rows:
            if len(x) != len(row) or not all(map(is_, x, row)):
                return False
        return all(_checksum(x) == found for x, found in self.arrays)

    def _walk(self, x):
        if isinstance(x, PLAIN):
            yield type(x), repr(x)
        elif id(x) in self.seen:
            yield self.seen[id(x)][0]
        else:
            self.seen[id(x)] = len(self.seen), x  # x is kept, so that its id stays its own
            yield from self._look_into(x)

    def _look_into(self, x):
        if isinstance(x, np.ndarray):
            yield id(x), _checksum(x)
            self.arrays.append((x, _checksum(x)))
        elif isinstance(x, FunctionType) and not is_library(x):
            yield from self._function(x)
        elif isinstance(x, MethodType):
            yield from self._all([x.__func__, x.__self__])
        elif isinstance(x, partial):
            yield from self._all([x.func, x.args, x.keywords])
        elif isinstance(x, (list, tuple, dict, set, frozenset)):
            yield from self._container(x)
        elif isinstance(x, Box):
            self.traced = True
        else:
            yield type(x), id(x)
            yield from self._attributes(x)

    def _all(self, values):
        for x in values:
            yield from self._walk(x)

    def _function(self, f):
        yield f.__code__
        self.names |= global_names(f.__code__)
        self.codes.append((f, f.__code__))
        yield from self._all([f.__defaults__, f.__kwdefaults__])
        for cell in f.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # not bound yet
                value = None
            self.cells.append((cell, value))
            yield from self._walk(value)
        yield from self._named(f.__globals__, global_names(f.__code__))

    def _container(self, x):
        yield type(x), len(x)
        if isinstance(x, dict):
            self.sizes.append((x, len(x)))
            yield tuple((type(key), repr(key)) for key in x)
            yield from self._named(x, x)
        else:
            self.rows.append((x, tuple(x)))
            yield from self._all(x)

    def _named(self, mapping, names):
        """What a mapping has under some names."""
        for name in [name for name in names if name in mapping]:
            self.items.append((mapping, name, mapping[name]))
            yield from self._walk(mapping[name])

    def _attributes(self, x):
        if isinstance(x, (staticmethod, classmethod, property)):
            yield from self._walk(getattr(x, "fget", None) or getattr(x, "__func__", None))
        elif isinstance(x, (type, ModuleType)):
            if not is_library(x):
                mappings = map(vars, x.__mro__[:-1] if isinstance(x, type) else [x])
                for mapping in mappings:
                    yield from self._named(mapping, sorted({"__call__", *self.names}))
        elif "__wrapped__" in getattr(x, "__dict__", ()):
            yield from self._walk(x.__wrapped__)
        elif hasattr(x, "__dict__"):
            self.sizes.append((vars(x), len(vars(x))))
            yield from self._named(vars(x), sorted(self.names))
            yield from self._walk(type(x))
        elif hasattr(x, "__slots__") and not is_library(type(x)):
            for name in sorted(name for name in self.names if _is_slot(x, name)):
                value = getattr(x, name, None)
                self.slots.append((x, name, value))
                yield from self._walk(value)
            yield from self._walk(type(x))


def _is_slot(x, name):
    return isinstance(getattr_static(type(x), name, None), MemberDescriptorType)


class _Held:
    """Whatever a print names by its id, which stays its own as long as the print is kept."""

    __slots__ = ("objects",)

    def __init__(self, objects):
        self.objects = objects

    def __eq__(self, other):
        return isinstance(other, _Held)

    def __hash__(self):
        return 0


PLAIN = (int, float, complex, str, bytes, np.generic, NoneType)


def _checksum(x):
    """Of an array's entries; of a large one's sample; of one that cannot change, nothing."""
    if not x.size or (x.base is None and not x.flags.writeable):
        return 0
    if x.nbytes > WHOLE:
        x = x.reshape(-1)[:: max(1, x.size // SAMPLE)] if x.flags.c_contiguous else x.flat[:SAMPLE]
    return zlib.crc32(np.ascontiguousarray(x).view(np.uint8).data)


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


def is_library(x):
    """Whether a function, class or module is a library's own and so never changes.

    Libraries' wrappers of users' functions have closures, and carry the users' names.
    """
    name = x.__name__ if isinstance(x, ModuleType) else x.__module__
    return (name or "").split(".")[0] in _LIBRARIES and not getattr(x, "__closure__", None)


_LIBRARIES = {"numpy", "scipy", "revgrad", "optree", *sys.stdlib_module_names} - {"__main__"}
