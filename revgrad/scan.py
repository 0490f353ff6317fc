"""scan: a statement list over a sequence, without a loss inside the step, and reversed exactly."""

from time import perf_counter

import numpy as np
import optree

from revgrad import blas
from revgrad._ext import homes
from revgrad.adjoints import Forward, Implicit, Reversible, Unrolled
from revgrad.arrays import plain
from revgrad.cells import Cell, CellCotangents, CellProgram, CellRun, Slot, like
from revgrad.errors import ClosureError, MissingRule, NotFinite
from revgrad.hyper import HyperTree, whole_number
from revgrad.memories import Nothing, every_so_often
from revgrad.record import Record
from revgrad.report import Report
from revgrad.rules.row import cast, dtype_of, shape_of
from revgrad.state import FixedPoint, Layout
from revgrad.statements import Scale
from revgrad.tape import Box, Primitive, Push
from revgrad.transforms import flatten_floats, in_kind


def scan(
    cell,
    state,
    inputs=None,
    *,
    params=None,
    steps=None,
    adjoint="auto",
    arithmetic=None,
    report=None,
):
    """Run a recurrent cell over a sequence, differentiably: returns the state after it.

        cell = (Scale("a", by=lambda b, x, w: gate(x, b, w)),          # a <- gate * a
                Add("a", lambda b, x, w: (1 - gate(x, b, w)) * new(x, b, w)),
                Scale("b", by=lambda a, x, w: ...), Add("b", lambda a, x, w: ...))
        end = rg.scan(cell, {"a": a0, "b": b0}, xs, params={"w": weights})

    cell: a sequence of `Scale` and `Add`; the argument names of their functions are what they read:
        state variables but their own target, params, the step's input `x`, and `t`, from 1. They
        must be pure. A loss along the way is a variable too: Add("loss", lambda a, x, w: ...).
    state: {variable: tree of float32 or float64 arrays}, all changed by the cell.
    inputs: a tree of arrays with a leading axis of steps, of any dtype; or a pure function of the
        step, from 0 (then `steps` is required). params: {name: tree}. Floats in both are cast to
        the state's dtype, where it has one.
    adjoint: `Reversible()` undoes each step: memory grows by log2(1/factor) bits per number and
        step, plus the cotangents of traced inputs. `Stored()`, `Checkpointed(k)`, `Truncated(k)`
        and `Unrolled()` are those of `train`. "auto" is Reversible where it is differentiated once.
    arithmetic: a `FixedPoint`: 52 fraction bits for every variable if no others are given; gates
        are rounded to n / 2**16, or finer near 1. report: a `Report` to be filled.

    Differentiable in state, params and inputs. Reversible, Stored and Checkpointed agree to the
    bit; the derivative is that of the unrounded step at the states visited.
    Raises: TypeError, ValueError for what cannot work; ClosureError; FixedOverflow; RatioRefused
    for a factor outside (0, 1] under Reversible(); on the way back NotReversed and NotFinite.
    Source: Maclaurin et al. 2015, section 6; MacKay et al. 2018 for gates of halves.
    """
    report = Report() if report is None else report.clear()
    given, layouts = _check_state(state)
    kinds = {dtype for layout in layouts.values() for dtype in layout.dtypes}
    kind = kinds.pop() if len(kinds) == 1 else None
    params = {} if params is None else params
    if not isinstance(params, dict):
        raise TypeError(f"params is a {type(params).__name__}; pass a dict, name to tree.")
    param_leaves, params_tree = _floats_of(params, kind)
    input_leaves, at_step, labels, steps = _check_inputs(inputs, steps, kind)
    slots = [Slot("params", k) for k in range(len(param_leaves))]
    run = CellRun(
        cell=Cell(tuple(cell), tuple(state), tuple(params), inputs is not None),
        layouts=layouts, params_tree=params_tree, inputs=at_step,
        labels={**params_tree(slots), "x": labels}, steps=steps,
        arithmetic=_check_arithmetic(arithmetic, state), report=report,
    )  # fmt: skip
    flat, treedef = optree.tree_flatten((given, param_leaves, input_leaves))
    adjoint = _chosen(adjoint, run, flat)
    if isinstance(adjoint, Unrolled):
        out = _unroll(run, given, param_leaves, input_leaves)
    else:
        flat = _scan(*flat, run=run, adjoint=adjoint, treedef=treedef)
        out = optree.tree_unflatten(optree.tree_structure(given), flat)
    return {name: _as_given(out[name], given[name], layouts[name]) for name in state}


def _as_given(leaves, like, layout):
    pairs = zip(leaves, like, strict=True)
    return layout.unflatten([in_kind(x, given) for x, given in pairs])


# What came.


def _check_state(state):
    """(variable -> leaves, variable -> Layout)."""
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise TypeError(
            f"state is a {type(state).__name__}; pass a dict, variable to tree of arrays."
        )
    given, layouts = {}, {}
    for name, tree in state.items():
        given[name], treedef = flatten_floats(tree, f"state[{name!r}]")
        layouts[name] = layout = Layout([plain(x) for x in given[name]], treedef, of=name)
        for path, dtype in zip(layout.paths, layout.dtypes, strict=True):
            if dtype not in (np.float32, np.float64):
                raise TypeError(
                    f"state[{name!r}]{path} is {dtype}; a scan takes float32 and float64."
                )
        if not layout.size:
            raise ValueError(f"state[{name!r}] holds no numbers; leave it out.")
    return given, layouts


def _is_float(x):
    x = plain(x)
    return isinstance(x, float) or getattr(getattr(x, "dtype", None), "kind", "") == "f"


def _floats_of(tree, kind):
    """(float leaves, cast to kind; function that puts the tree together again)."""
    leaves, treedef = optree.tree_flatten(tree)
    floats = [i for i, x in enumerate(leaves) if _is_float(x)]
    taken = [_cast(leaves[i], kind) for i in floats]
    return taken, HyperTree(treedef, leaves, floats)


def _cast(x, kind):
    return x if kind is None or not hasattr(plain(x), "dtype") else cast(x, kind)


def _check_inputs(inputs, steps, kind):
    """(float leaves, function (these, step) -> x, tree of Slots like x, steps)."""
    if steps is not None:
        steps = whole_number(steps, "steps", 0)
    if inputs is None or callable(inputs):
        if steps is None:
            what = "inputs is a function of the step" if callable(inputs) else "there are no inputs"
            raise ValueError(f"{what}, so scan needs steps=.")
        return [], lambda _, t: _untraced(inputs(t), kind), None, steps
    leaves, _ = optree.tree_flatten(inputs)
    lengths = sorted({(*shape_of(plain(x)), "none")[0] for x in leaves}, key=str)
    if len(lengths) != 1 or lengths == ["none"]:
        raise ValueError(
            f"inputs have leading axes {lengths}; pass a tree of arrays with a row for each step, "
            "in equal number, or a function of the step."
        )
    if steps not in (None, lengths[0]):
        raise ValueError(f"inputs have {lengths[0]} rows, but steps={steps}; make them equal.")
    taken, tree = _floats_of(inputs, kind)
    fixed = [None if i in tree.floats else homes.real_array(x) for i, x in enumerate(leaves)]

    def at_step(given, t):
        given = iter(given)
        now = [next(given)[t] if x is None else x[t] for x in fixed]
        return optree.tree_unflatten(tree.tree, now)

    labels = tree([Slot("inputs", k) for k in range(len(taken))])
    return taken, at_step, labels, lengths[0]


def _untraced(x, kind):
    if any(isinstance(leaf, Box) for leaf in optree.tree_leaves(x)):
        raise ClosureError(
            "inputs, a function, gave a traced value, whose derivative would be lost; pass arrays "
            "with a leading axis of steps."
        )
    return optree.tree_map(lambda leaf: _cast(leaf, kind) if _is_float(leaf) else leaf, x)


def _check_arithmetic(arithmetic, state):
    arithmetic = FixedPoint() if arithmetic is None else arithmetic
    if unknown := sorted(arithmetic.fraction_bits.keys() - state.keys()):
        raise ValueError(
            f"FixedPoint(fraction_bits=...) has {unknown}; the state holds {sorted(state)}."
        )
    return arithmetic


def _chosen(adjoint, run, flat):
    """The adjoint, checked against the cell; said in the report."""
    why = ""
    if isinstance(adjoint, str) and adjoint == "auto":
        adjoint, why = _choice(flat)
    if isinstance(adjoint, type) or not hasattr(adjoint, "check"):
        raise TypeError(
            f'adjoint={adjoint!r}; pass "auto", Reversible(), Stored(), Checkpointed(20) or '
            "Unrolled() (an instance)."
        )
    if isinstance(adjoint, (Forward, Implicit)):
        raise TypeError(f"{adjoint!r} is for train alone; pass Reversible() or Unrolled().")
    if isinstance(adjoint, Reversible) and (s := run.cell.refused):
        raise TypeError(
            f"Reversible() cannot undo {s.target!r} *= {s.by}: a factor is to be in (0, 1]. Use "
            "another, or adjoint=Checkpointed(20)."
        )
    run.report.adjoint = f"{adjoint!r}, chosen because {why}" if why else repr(adjoint)
    return adjoint


def _choice(flat):
    boxes = [x for x in flat if isinstance(x, Box)]
    below = [x.value for x in boxes if isinstance(x.value, Box)]
    if not all(isinstance(x.owner, Record) for x in below):
        return Unrolled(), "it is differentiated more than once"
    if any(isinstance(x.owner, Push) for x in boxes):
        return Unrolled(), "it is differentiated in forward mode"
    return Reversible(), "its steps can be undone"


# The two sweeps.


def _forwards(flat, run, adjoint, treedef, *, remember):
    """Scan; returns (program, memory, final state)."""
    began, report = perf_counter(), run.report
    values = optree.tree_unflatten(treedef, flat)
    keep = adjoint.keep and remember
    program = CellProgram(run, values, exact=adjoint.exact, keep=keep)
    memory = adjoint.remember(program) if remember else Nothing()
    state, largest, every = program.start(), {}, every_so_often(run.steps)
    for t in range(run.steps):
        memory.before(t, state)
        if t % every == 0:
            _look(state, largest)
        program.advance(state, t)
    _look(state, largest)
    report.steps, report.weights = run.steps, _numbers(run)
    number_steps = max(1, run.steps * report.weights)
    report.bits = sum(b.bits for b in state.buffers.values())
    report.bits_per_weight_step = report.bits / number_steps
    report.bound = program.bound / number_steps
    report.bytes_kept = memory.nbytes + keep * sum(b.nbytes for b in state.buffers.values())
    report.bytes_stored = run.steps * sum(
        np.dtype(dtype).itemsize * int(np.prod(shape))
        for layout in run.layouts.values()
        for dtype, shape in zip(layout.dtypes, layout.shapes, strict=True)
    )
    for name, x in state.variables.items():
        report.fraction_bits[name] = x.fraction_bits
        report.largest[name] = (largest[name], 2.0 ** (63 - x.fraction_bits))
    report.seconds = perf_counter() - began
    return program, memory, state


def _numbers(run):
    return sum(layout.size for layout in run.layouts.values())


def _look(state, largest):
    for name, x in state.variables.items():
        largest[name] = max(x.largest, largest.get(name, 0.0))


def _backwards(done, cotangents):
    """Pull cotangents of the final state back to the start, in place."""
    program, memory, final = done
    began, run, every = perf_counter(), program.run, every_so_often(program.run.steps)
    report = run.report
    report.growth, report.replays, t = [(run.steps, _norm(run, cotangents, run.steps))], 0, 0
    with np.errstate(over="ignore", invalid="ignore"):
        for t, _ in memory.back(final.copy(), run.steps, cotangents):
            norm = _norm(run, cotangents, t)
            if t and t % every == 0:
                report.growth.append((t, norm))
    if t:  # truncated: what came before counts as given
        cotangents.variables = {k: np.zeros_like(ct) for k, ct in cotangents.variables.items()}
    report.seconds_back = perf_counter() - began


def _norm(run, cotangents, t):
    square = sum(ct @ ct for ct in cotangents.variables.values())
    if not np.isfinite(square):
        for name, ct in cotangents.variables.items():
            if not np.all(np.isfinite(ct)):
                raise NotFinite(
                    f"step {t}, on the way back: the derivative with respect to {name} is not "
                    "finite. It grew without bound (see report.chaos), or a function has no slope.",
                    step=t,
                )
    return float(np.sqrt(square))


def _leaves_out(run, state):
    leaves = {name: run.layouts[name].leaves(x) for name, x in state.variables.items()}
    return tuple(optree.tree_leaves(leaves))


def _run(*flat, run, adjoint, treedef):
    with blas.pinned() as threads:
        run.report.blas_threads = threads
        return _leaves_out(run, _forwards(flat, run, adjoint, treedef, remember=False)[2])


def _stage(wanted, flat, static):
    run, adjoint = static["run"], static["adjoint"]
    if any(isinstance(x, Box) for x in flat):
        raise MissingRule(
            f"{adjoint!r} has first derivatives only, and scan met a second trace (a grad of a "
            "grad, or a recording); pass adjoint=Unrolled()."
        )
    with blas.pinned() as threads:
        run.report.blas_threads = threads
        done = _forwards(flat, **static, remember=True)

    def pullback(cts):
        if any(isinstance(ct, Box) for ct in cts):
            raise MissingRule("scan met a traced cotangent; pass adjoint=Unrolled().")
        cotangents = _cotangents(run, flat, static["treedef"], wanted, cts)
        with blas.pinned(threads):
            _backwards(done, cotangents)
        leaves = {k: run.layouts[k].split(ct) for k, ct in cotangents.variables.items()}
        tree = (leaves, cotangents.params, cotangents.inputs)
        found = optree.tree_leaves(tree, none_is_leaf=True)
        there = {i: homes.beside(homes.real_array(found[i])[()], flat[i]) for i in wanted}
        return [cast(there[i], dtype_of(flat[i])) for i in wanted]

    return _leaves_out(run, done[2]), pullback


def _cotangents(run, flat, treedef, wanted, cts):
    """Where the way back begins: those of the final state, and zeros for what is wanted."""
    zeros = [
        homes.beside(np.zeros(np.shape(x)), x) if i in wanted else None for i, x in enumerate(flat)
    ]
    _, params, inputs = optree.tree_unflatten(treedef, zeros)
    given, variables = iter(cts), {}
    for name in sorted(run.layouts):  # as the tree has them
        layout = run.layouts[name]
        leaves = [next(given) for _ in layout.shapes]
        variables[name] = layout.join([0.0 if ct is None else ct for ct in leaves])
    return CellCotangents(variables, params, inputs)


_scan = Primitive("scan", _run, stage=_stage, many=True)


# In floats, on the tape.


def _unroll(run, given, params, inputs):
    variables = {name: [np.copy(x) for x in leaves] for name, leaves in given.items()}
    params = run.params_tree(params)
    for t in range(run.steps):
        for s in run.cell.statements:
            reads = {}
            for name in s.reads:
                if name in variables:
                    reads[name] = run.layouts[name].unflatten(variables[name])
                elif name == "t":
                    reads[name] = np.int64(t + 1)
                else:
                    reads[name] = run.inputs(inputs, t) if name == "x" else params[name]
            scales = isinstance(s, Scale)
            out = s.factor(reads) if scales else s.delta(**reads)
            pairs = zip(variables[s.target], like(out, run.layouts[s.target], s), strict=True)
            variables[s.target] = [x * y if scales else x + y for x, y in pairs]
    run.report.steps, run.report.weights = run.steps, _numbers(run)
    return variables
