"""What an optimizer is made of: a list of reversible statements.

    momentum = (Scale("velocity", by="momentum"),
                Add("velocity", lambda g, momentum: -(1 - momentum) * g),
                Add("params", lambda velocity, learning_rate: learning_rate * velocity))

A statement names what it changes, and the argument names of its function are what it reads:

    a state variable, "params" included, as it is when the statement's turn comes
    a hyperparameter   snapped to the ratio that stands for it, if it scales
    g                  the loss gradient at the params that the step started from
    g_norm             the l2 norm of g over all params, one number
    aux                what the loss returned beside its value, there; see below
    t                  the step, from 1

Functions act entry by entry. From the list follow the step, its undo, its pull-back and its
push-forward; nothing else about an optimizer is written down anywhere.

A variable that is changed by what reads `aux` has the tree of aux, not that of the params. It may
be read by the statements of other such variables alone.
"""

import inspect
from dataclasses import dataclass, field, fields, replace
from types import NoneType
from typing import Any, ClassVar

import numpy as np

from revgrad.arrays import plain
from revgrad.errors import ClosureError
from revgrad.rules.row import cast, dtype_of, elementwise_primitive, filled_like, shape_of
from revgrad.tape import Box
from revgrad.tuning import FIELDS, Tuner, check_tuning

OF_LOSS = {"g", "g_norm", "aux"}  # known at the params that a step starts from, and only there


@dataclass(frozen=True)
class Scale:
    """target <- target * by: a hyperparameter's name, a function of some (and of t), or a number.

    The only statement that destroys information; a buffer keeps what it destroys. `Reversible()`
    needs factors in (0, 1]; above_one=True: any that are positive.
    given, unless: left out where this optional hyperparameter is absent, or given.
    """

    target: str
    by: Any
    above_one: bool = False
    given: str | None = None
    unless: str | None = None
    reads: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.reads is None:
            _set(self, "reads", () if self.literal else self.needs)

    @property
    def literal(self) -> bool:
        """Whether the factor is a number in the list itself."""
        return isinstance(self.by, (int, float))

    @property
    def needs(self) -> tuple[str, ...]:
        if self.literal or isinstance(self.by, str):
            return () if self.literal else (self.by,)
        return _argument_names(self.by)

    @property
    def can_be_undone(self):
        """Whether it can, as far as the list tells."""
        return not self.literal or (self.by > 0 and (self.by <= 1 or self.above_one))

    def of(self, x, reads):
        """What it makes of x, in real numbers."""
        return x * self.factor(reads)

    def factor(self, reads):
        if self.literal:
            return float(self.by)
        return reads[self.by] if isinstance(self.by, str) else self.by(**reads)


@dataclass(frozen=True)
class Add:
    """target <- target + delta(what it reads), rounded to the target's ulp; undone exactly.

    An argument of delta with a default is read where that optional hyperparameter is given; where
    one without is absent, the statement is left out. given, unless: see Scale.
    """

    target: str
    delta: Any
    given: str | None = None
    unless: str | None = None
    reads: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.reads is None:
            _set(self, "reads", _argument_names(self.delta))

    @property
    def needs(self):
        return _argument_names(self.delta, required=True)

    can_be_undone = True

    def of(self, x, reads):
        """What it makes of x, in real numbers."""
        return x + self.delta(**reads)


def _set(frozen, name, value):
    object.__setattr__(frozen, name, value)


def _argument_names(function, required=False):
    parameters = inspect.signature(function).parameters.items()
    return tuple(k for k, p in parameters if not required or p.default is inspect.Parameter.empty)


@dataclass(frozen=True, eq=False)
class Optimizer:
    """Base of optimizers: dataclass fields are hyperparameters, `statements` is the step.

    Each hyperparameter is a number, a tree prefix of the params (one value per layer, or per
    weight), or `per_step` of one; any of them may be traced. One whose default is None, or whose
    name is in `optional`, may be None: then it costs nothing, because the statements that need it
    are left out of the instance's list.

    initial: what a state variable starts at, if not at 0 or at what `state` gives: a number, the
        name of a hyperparameter (0 where it is absent), or "params", which are then copied.
    magnitudes: how large a state variable may be expected to be, if not as the first gradient: a
        function of some of g and params (the largest there are at the first step), steps and
        hyperparameters (their largest value, 0 where absent). It sets the fraction bits.
    domains: hyperparameter -> (lowest, highest) value it may learn, if not as in `revgrad.tuning`.
    tuned_by: the optimizer (or other tuner) by which hyperparameters learn while `revgrad.fit`
        trains; it may have a tuned_by of its own, to any height.
    tuned: names of those that learn; by default all but eps, eps_root and initial values.
    transforms: name -> how what learns becomes the hyperparameter: see `revgrad.tuning.TRANSFORMS`.
    Raises at construction: TypeError for a statement that reads its own target, an unknown name, or
    mixes what has the params' tree with what has that of aux, or for what cannot be tuned so.
    """

    tuned_by: Any = field(default=None, kw_only=True, repr=False)
    tuned: Any = field(default=None, kw_only=True, repr=False)
    transforms: Any = field(default=None, kw_only=True, repr=False)

    domains: ClassVar[dict] = {}
    statements: ClassVar[tuple] = ()
    initial: ClassVar[dict] = {}
    magnitudes: ClassVar[dict] = {}
    optional: ClassVar[tuple] = ()

    def __post_init__(self):
        absent = {f.name for f in hyper_fields(self) if _is_absent(self, f)}
        kept = [s for s in self.statements if _takes_part(s, absent)]
        _set(self, "statements", tuple(_without(s, absent) for s in kept))
        _set(self, "aux_variables", _laid_out_as_aux(self.statements))
        self._check(absent)
        if not isinstance(self.tuned_by, (Optimizer, Tuner, NoneType)):
            raise TypeError(
                f"{self.name}(tuned_by=...) is a {type(self.tuned_by).__name__}; pass an "
                "optimizer, e.g. SGD(1e-5)."
            )
        check_tuning(self)

    def _check(self, absent):
        variables = {"t", "params", *OF_LOSS, *self.variables}
        if clash := variables & {*self.hyper, *absent}:
            raise TypeError(
                f"{self.name}: {sorted(clash)} name both hyperparameters and what a statement "
                "reads or changes; rename the hyperparameters."
            )
        known = variables | set(self.hyper)
        for s in self.statements:
            if unknown := set(s.reads) - known:
                raise TypeError(
                    f"{self.name}: the statement that changes {s.target!r} reads "
                    f"{sorted(unknown)}, which is none of {sorted(known)}."
                )
            if s.target in s.reads:
                raise TypeError(
                    f"{self.name}: a statement reads its own target {s.target!r}, so it could not "
                    "be undone; use Scale, or a second variable."
                )
            of_t = () if isinstance(s, Scale) and isinstance(s.by, str) else ("t",)
            if isinstance(s, Scale) and (wrong := set(s.reads) - {*self.hyper, *of_t}):
                raise TypeError(
                    f"{self.name}: {s.target!r} is scaled by a function of {sorted(wrong)}; "
                    "a factor may depend on hyperparameters and t alone."
                )
            self._check_trees(s)

    def _check_trees(self, s):
        like_params = {"params", "g", *self.variables} - self.aux_variables
        if s.target == "params" and "params" in self.aux_variables:
            raise TypeError(
                f"{self.name}: 'params' are changed by what reads aux, which has a tree of its "
                "own; let the loss return what belongs to the params through its gradient."
            )
        if s.target in self.aux_variables and (mixed := set(s.reads) & like_params):
            raise TypeError(
                f"{self.name}: {s.target!r} has the tree of aux, but a statement that changes it "
                f"reads {sorted(mixed)}, which have that of the params."
            )

    @property
    def name(self):
        return type(self).__name__

    @property
    def hyper(self):
        """Hyperparameters by name, but for the optional ones that are absent."""
        return {
            f.name: getattr(self, f.name) for f in hyper_fields(self) if not _is_absent(self, f)
        }

    @property
    def untuned(self):
        """The same optimizer with hyperparameters that stay as they are."""
        return replace(self, **dict.fromkeys(FIELDS))

    def with_hyper(self, values):
        """The optimizer with other values of these hyperparameters: a dict as `hyper` is."""
        return replace(self, **values)

    @property
    def variables(self):
        """State variables other than params, in order of appearance."""
        return tuple(dict.fromkeys(s.target for s in self.statements if s.target != "params"))

    @property
    def reads(self):
        """All that some statement reads."""
        return {name for s in self.statements for name in s.reads}

    @property
    def aux_names(self):
        """Variables with the tree of aux, and hyperparameters that only their statements read."""
        of_aux, of_params = self._hyper_reads
        return self.aux_variables | of_aux - of_params

    @property
    def shared(self):
        """Hyperparameters that statements about aux read, and others too."""
        of_aux, of_params = self._hyper_reads
        return of_aux & of_params

    @property
    def _hyper_reads(self):
        """Hyperparameters read by statements about aux, and by the others."""
        found = set(), set()
        for s in self.statements:
            found[s.target not in self.aux_variables].update({*s.reads} & {*self.hyper})
        return found

    @property
    def reversible(self):
        """Whether a step can be undone: see `undo_order`."""
        return self.undo_order is not None

    @property
    def undo_order(self):
        """Statement indices in the order that undoes a step, or None if there is no such order.

        A later statement is undone before an earlier one where they touch the same variable in
        conflicting ways, and every writer of params before any reader of `g`, `g_norm` or `aux`,
        because undoing those needs the loss at the params that the step started from.
        """
        s, order = self.statements, []
        if not all(x.can_be_undone for x in s):
            return None
        while len(order) < len(s):
            ready = [i for i in range(len(s)) if i not in order and _undone(s, i) <= set(order)]
            if not ready:
                return None
            order.append(max(ready))
        return tuple(order)

    def start(self, leaves, hyper):
        """What variables with an `initial` start at: name -> leaves like those of the params.

        hyper(name, k): the value for leaf k at the first step. Every value may be traced.
        """
        return {
            name: [self._initial(name, x, hyper, k) for k, x in enumerate(leaves)]
            for name in self.variables
            if self.initial.get(name) == "params" or self._starts_at(name) is not None
        }

    def _starts_at(self, name):
        """A number or a hyperparameter's name; None for 0."""
        value = self.initial.get(name)
        return None if isinstance(value, str) and value not in self.hyper else value

    def _initial(self, name, x, hyper, k):
        if self.initial[name] == "params":
            return x
        value = self._starts_at(name)
        value = hyper(value, k) if isinstance(value, str) else value
        like = plain(value if shape_of(value) else x)
        ones = filled_like(np.ones_like, like, np.float64, shape=shape_of(x))
        return cast(ones * value, dtype_of(x))

    def float_step(self, variables, g, hyper, t, aux=None):
        """One step in float arithmetic, leaf by leaf; returns the new variables.

        variables: name -> leaves, "params" included; g, aux: leaves; hyper(name, k): the value for
        leaf k; t: from 1. Every value may be traced.
        """
        norm = global_norm(g) if "g_norm" in self.reads else None
        of_loss = {"g": g, "aux": aux}
        variables = dict(variables)

        def read(name, k):
            if name in ("t", "g_norm"):
                return t if name == "t" else norm
            leaves = of_loss.get(name, variables.get(name))
            return hyper(name, k) if leaves is None else leaves[k]

        for s in self.statements:
            variables[s.target] = [
                cast(s.of(x, {name: read(name, k) for name in s.reads}), dtype_of(x))
                for k, x in enumerate(variables[s.target])
            ]
        return variables

    def refuse_closures(self):
        """Raises: ClosureError where a statement's function uses a traced value of its own."""
        for s in self.statements:
            with np.errstate(all="ignore"):
                out = s.of(np.ones(1), {name: np.ones(1) for name in s.reads})
            if isinstance(out, Box):
                raise ClosureError(
                    f"{self.name}: the statement that changes {s.target!r} uses a traced value "
                    "that it does not read, so its derivative would be lost; make that a field of "
                    "the optimizer and an argument of the function."
                )

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):  # or dataclass would write one
            cls.__repr__ = Optimizer.__repr__

    def __repr__(self):
        """A tower by the names of its levels: "adam / sgd"; else as dataclasses are shown."""
        if self.tuned_by is not None:
            above = self.tuned_by if isinstance(self.tuned_by, Optimizer) else None
            top = (above.name.lower() if above.tuned_by is None else repr(above)) if above else None
            return f"{self.name.lower()} / {top or repr(self.tuned_by)}"
        shown = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.repr]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __str__(self):
        """The statements, a line each, as assignments."""
        rows = [f"    {line}" for line in map(written, self.statements)]
        return "\n".join([self.name, *rows])


def hyper_fields(optimizer):
    """Its dataclass fields but for those that say how it is tuned."""
    return [f for f in fields(optimizer) if f.name not in FIELDS]


def global_norm(leaves):
    """The l2 norm over all leaves in float64, with derivative 0 at 0; leaves may be traced."""
    return root(sum(np.sum(np.square(cast(x, np.float64))) for x in leaves))


def _slope_of_root(out, x):
    """out / (2 x), and 0 at 0; of the fast ufuncs alone, which a replay takes block by block."""
    return out * (0.5 / (x + float(np.finfo(dtype_of(out)).tiny)))


# Square root whose derivative at 0 is 0: a pixel that is never lit has no second moment.
root = elementwise_primitive(np.sqrt, [_slope_of_root])


def _is_absent(optimizer, field):
    may_be = field.default is None or field.name in optimizer.optional
    return may_be and getattr(optimizer, field.name) is None


def _takes_part(s, absent):
    return not {*s.needs, s.given} & absent and (s.unless is None or s.unless in absent)


def _without(s, absent):
    reads = tuple(name for name in s.reads if name not in absent)
    return replace(s, reads=reads, given=None, unless=None)


def _laid_out_as_aux(statements):
    """The variables with the tree of aux: those that read it, and those that read them."""
    found, before = {"aux"}, set()
    while found != before:
        before = set(found)
        found |= {s.target for s in statements if found & set(s.reads)}
    return frozenset(found - {"aux"})


def _undone(statements, i):
    """Which statements must be undone before statement i can be."""
    after = {j for j in range(i + 1, len(statements)) if _conflict(statements[i], statements[j])}
    if OF_LOSS & set(statements[i].reads):
        after |= {j for j, s in enumerate(statements) if s.target == "params"}
    return after


def _conflict(a, b):
    if a.target == b.target:
        return isinstance(a, Scale) or isinstance(b, Scale)
    return a.target in b.reads or b.target in a.reads


# A statement as text, for people.


def written(statement):
    """A statement as an assignment: "velocity *= momentum"."""
    reads = {name: Text(name) for name in statement.reads}
    if isinstance(statement, Scale):
        return f"{statement.target} *= {statement.factor(reads)}"
    added = str(statement.delta(**reads))
    if added.startswith("-") and " + " not in added and " - " not in added:
        return f"{statement.target} -= {added[1:]}"
    return f"{statement.target} += {added}"


class Text(np.lib.mixins.NDArrayOperatorsMixin):
    """A value that is known by how it is written. strength: of the loosest operator in it."""

    SIGNS: ClassVar = {
        "power": ("**", 4), "multiply": (" * ", 2), "divide": (" / ", 2), "add": (" + ", 1),
        "subtract": (" - ", 1), "greater": (" > ", 0), "less": (" < ", 0), "equal": (" == ", 0),
        "greater_equal": (" >= ", 0), "less_equal": (" <= ", 0),
    }  # fmt: skip

    def __init__(self, text, strength=9):
        self.text, self.strength = text, strength

    def __str__(self):
        return self.text

    __hash__ = object.__hash__

    def __array_ufunc__(self, ufunc, _method, *inputs, **_options):
        name = ufunc.__name__
        if name == "negative":
            return Text(f"-{_within(inputs[0], 2)}", 2)
        if name not in self.SIGNS:
            return Text(f"{name}({', '.join(map(str, inputs))})")
        sign, strength = self.SIGNS[name]
        left, right = inputs
        tighter = strength + (name in ("subtract", "divide"))
        return Text(f"{_within(left, strength)}{sign}{_within(right, tighter)}", strength)

    def __array_function__(self, function, _types, args, _options):
        return Text(f"{function.__name__}({', '.join(map(str, args))})")


def _within(x, strength):
    """x as an operand of an operator this strong."""
    loose = isinstance(x, Text) and x.strength < strength
    return f"({x})" if loose else str(x)
