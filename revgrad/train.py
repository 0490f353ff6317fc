"""The door: check what came, take it apart, and be a primitive of the tape."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import NoneType

import numpy as np
import optree

from revgrad import blas
from revgrad.adjoints import Reversible, Stored, Unrolled, backwards, forwards, unroll
from revgrad.arrays import plain
from revgrad.errors import ClosureError, MissingRule
from revgrad.gradient import CLOSURE
from revgrad.hyper import HyperTree, Spread, is_per_step, resolve, whole_number
from revgrad.optimizers import Optimizer
from revgrad.record import Record
from revgrad.report import Report
from revgrad.rules.row import cast, dtype_of
from revgrad.state import FixedPoint, Layout, Run, Values
from revgrad.tape import Box, Primitive, Push
from revgrad.transforms import check_scalar, flatten_floats, flatten_like


def train(
    loss,
    params,
    optimizer,
    batches,
    *,
    steps=None,
    hyper=None,
    adjoint="auto",
    state=None,
    has_aux=False,
    return_state=False,
    watch=None,
    return_watched=False,
    callback=None,
    report=None,
    arithmetic=None,
):
    """Train, differentiably: returns the trained params, a tree like `params`.

    loss(params, hyper, batch) -> real scalar; (scalar, aux) with has_aux=True. It must be a pure
        function: what it needs and what is traced goes through `hyper`.
    params: tree of real float arrays. optimizer: see `revgrad.optimizers`.
    batches: a sequence, gone through again and again, or a pure function of the step (then `steps`
        is required). All randomness must come from the step: see `revgrad.data.minibatches`.
    hyper: what the loss's second argument is: any tree; leaves may be `per_step`. Floats are cast
        to the params' dtype.
    adjoint: `Reversible()`, `Stored()`, `Unrolled()`; "auto" is Reversible where it can be.
    state: initial velocity, moments and "t" (steps taken before), as an earlier run returned.
    watch(step, params) -> scalar, before each step; collected in report.watched, and returned as a
        differentiable vector with return_watched=True.
    callback(step, metrics): after each step; metrics has "loss" and "aux"; raising `StopRun` ends
        the run there. report: a `Report` to be filled. arithmetic: a `FixedPoint`.
    Returns trained, or a tuple (trained[, state][, watched]) as asked.

    Differentiable in params, state, every optimizer hyperparameter and hyper. The integers of a
    run, its heads and words are the same whether it is traced or not.
    Raises: TypeError, ValueError for what cannot work; ClosureError; RatioRefused; FixedOverflow;
    on the way back NotReversed. Source: Maclaurin et al. 2015.
    """
    report = Report() if report is None else report.clear()
    adjoint = _choose(adjoint, optimizer, report)
    arithmetic = _check_arithmetic(arithmetic, optimizer)
    batch, steps = _check_batches(batches, steps)
    leaves, layout = _check_params(params)
    warm, first_t = _check_state(state, optimizer, layout)
    spreads, optimizer_values = _spread(optimizer, steps, layout)
    hyper_leaves, hyper_every, hyper_tree = _take_hyper(hyper, steps, layout)
    run = Run(
        loss=loss, has_aux=has_aux, optimizer=_without_values(optimizer), batch=batch, steps=steps,
        first_t=first_t, layout=layout, spreads=spreads, hyper_tree=hyper_tree,
        hyper_every=hyper_every, watch=watch if return_watched else _untraced(watch),
        callback=callback, report=report, arithmetic=arithmetic,
    )  # fmt: skip
    values = Values(leaves, warm, optimizer_values, hyper_leaves)
    _probe(run, values)
    if isinstance(adjoint, Unrolled):
        trained, variables, watched = unroll(run, values)
    else:
        flat, treedef = optree.tree_flatten(_as_tree(values))
        _refuse_forward_mode(flat, adjoint)
        out = _train(*flat, run=run, adjoint=adjoint, treedef=treedef)
        trained, variables, watched = optree.tree_unflatten(_out_tree(run), out)
    return _answer(run, trained, variables, watched, return_state, return_watched)


def _answer(run, trained, variables, watched, return_state, return_watched):
    def like_params(leaves):
        return run.layout.unflatten(leaves)

    out = [like_params(trained)]
    if return_state:
        state = {name: like_params(leaves) for name, leaves in variables.items()}
        out.append({**state, "t": run.first_t + run.report.steps})
    if return_watched:
        out.append(watched)
    return out[0] if len(out) == 1 else tuple(out)


# What came.


def _choose(adjoint, optimizer, report):
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}; pass one of revgrad's, e.g. Momentum(0.1)."
        )
    if isinstance(adjoint, str) and adjoint == "auto":
        adjoint = Reversible() if optimizer.reversible else Stored()
        why = "is" if optimizer.reversible else "is not"
        report.adjoint = f"{adjoint!r}, chosen because {optimizer.name} {why} reversible"
    else:
        report.adjoint = repr(adjoint)
    if isinstance(adjoint, type) or not hasattr(adjoint, "check"):
        raise TypeError(
            f'adjoint={adjoint!r}; pass "auto", Reversible(), Stored() or Unrolled() (an instance).'
        )
    adjoint.check(optimizer)
    return adjoint


def _check_arithmetic(arithmetic, optimizer):
    arithmetic = FixedPoint() if arithmetic is None else arithmetic
    known = {"params", *optimizer.variables}
    if unknown := arithmetic.fraction_bits.keys() - known:
        raise ValueError(
            f"FixedPoint(fraction_bits=...) has {sorted(unknown)}; {optimizer.name} keeps "
            f"{sorted(known)}."
        )
    return arithmetic


def _check_batches(batches, steps):
    """(step -> batch, steps)."""
    steps = steps if steps is None else whole_number(steps, "steps", 0)
    if hasattr(batches, "__next__"):
        raise TypeError(
            f"batches is a {type(batches).__name__}, which cannot be met again in reverse; pass a "
            "list or a function of the step index."
        )
    if callable(batches):
        if steps is None:
            raise ValueError("batches is a function of the step, so train needs steps=.")
        return batches, steps
    sequence = hasattr(batches, "__len__") and hasattr(batches, "__getitem__")
    if not sequence or isinstance(batches, (dict, str)):
        raise TypeError(
            f"batches is a {type(batches).__name__}; pass a sequence of batches, or a function of "
            "the step index with steps=."
        )
    if not len(batches) and steps != 0:
        asked = "" if steps is None else f" and {steps} steps were asked for"
        raise ValueError(f"batches is empty{asked}; pass some, or steps=0 if none are meant.")
    return (lambda t: batches[t % len(batches)]), len(batches) if steps is None else steps


def _check_params(params):
    """(leaves, layout)."""
    leaves, tree = flatten_floats(params, "params")
    layout = Layout([plain(x) for x in leaves], tree)
    for path, dtype in zip(layout.paths, layout.dtypes, strict=True):
        if dtype not in (np.float32, np.float64):
            raise TypeError(
                f"params{path} is {dtype}; training takes float32 and float64, so pass "
                "x.astype(np.float32)."
            )
    if not layout.size:
        raise ValueError("params holds no numbers; pass a tree with an array in it.")
    return leaves, layout


def _check_state(state, optimizer, layout):
    """(state variable -> leaves, steps taken before)."""
    if not isinstance(state, (dict, NoneType)):
        raise TypeError(
            f"state is a {type(state).__name__}; pass what train(..., return_state=True) returned, "
            f"or a dict of some of {[*optimizer.variables, 't']}."
        )
    state = dict(state or {})
    first_t = whole_number(state.pop("t", 0), "state['t']", 0)
    if unknown := state.keys() - set(optimizer.variables):
        raise ValueError(
            f"state has {sorted(unknown)}; {optimizer.name} keeps {sorted(optimizer.variables)}."
        )
    warm = {}
    for name, value in state.items():
        what = f"state[{name!r}]"
        warm[name], _ = flatten_floats(value, what)
        flatten_like(value, layout.tree, what, "the tree of the params")
        shapes = [np.shape(plain(x)) for x in warm[name]]
        for path, came, wanted in zip(layout.paths, shapes, layout.shapes, strict=True):
            if came != wanted:
                raise ValueError(f"{what}{path} has shape {came}, but params{path} has {wanted}.")
    return warm, first_t


def _spread(optimizer, steps, layout):
    spreads, values = {}, {}
    for name, tree in optimizer.hyper.items():
        where = f"{optimizer.name}({name}=...)"
        tree = resolve(tree, steps)
        _refuse_other_than_floats(tree, where)
        spreads[name], values[name] = Spread.of(where, tree, layout)
        values[name] = [float(v) if isinstance(v, int) else v for v in values[name]]
    return spreads, values


def _refuse_other_than_floats(tree, where):
    bare = optree.tree_map(lambda x: x.values if is_per_step(x) else x, tree, is_leaf=is_per_step)
    flatten_floats(optree.tree_map(lambda x: float(x) if type(x) is int else x, bare), where)


def _take_hyper(hyper, steps, layout):
    """(float leaves, each one's `every` or None, function that puts the tree together again)."""
    hyper = resolve(hyper, steps)
    leaves, tree = optree.tree_flatten(hyper, is_leaf=is_per_step)
    every = [x.every if is_per_step(x) else None for x in leaves]
    values = [x.values if is_per_step(x) else x for x in leaves]
    floats = [i for i, v in enumerate(values) if _is_float(v)]
    kind = layout.dtypes[0] if len(set(layout.dtypes)) == 1 else None
    taken = [values[i] if kind is None else _cast_strong(values[i], kind) for i in floats]
    for i, k in enumerate(every):
        if k is not None and i not in floats:
            raise TypeError("per_step in hyper must hold floats; compute integers from the batch.")

    return taken, tuple(every[i] for i in floats), HyperTree(tree, values, floats)


def _is_float(x):
    return (
        getattr(
            getattr(plain(x), "dtype", None), "kind", "f" if isinstance(plain(x), float) else ""
        )
        == "f"
    )


def _cast_strong(x, dtype):
    """Arrays and NumPy scalars to dtype; Python floats are weak and stay."""
    return cast(x, dtype) if hasattr(plain(x), "dtype") else x


def _without_values(optimizer):
    return replace(optimizer, **dict.fromkeys(optimizer.hyper))


def _untraced(watch):
    """watch, of plain params: nobody asked for its derivative, and it need not have one."""
    return watch and (lambda t, params: watch(t, optree.tree_map(plain, params)))


def _probe(run, values):
    """One look at the loss: what it returns, and whether it closes over a traced value."""
    params = run.layout.unflatten([plain(x) for x in values.params])
    if not run.steps:
        return
    now = [
        plain(x) if e is None else plain(x)[0]
        for x, e in zip(values.hyper, run.hyper_every, strict=True)
    ]
    out = run.loss(params, run.hyper_tree(now), run.batch(0))
    if run.has_aux and not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(
            f"has_aux=True needs a loss that returns (scalar, aux), not a {type(out).__name__}."
        )
    out = out[0] if run.has_aux else out
    if isinstance(out, Box):
        raise ClosureError(CLOSURE)
    check_scalar(out, "the loss")


# The primitive.


def _as_tree(values):
    return [values.params, values.warm, values.optimizer, values.hyper]


def _out_tree(run):
    parts = len(run.layout.shapes)
    leaves = [0] * parts
    return optree.tree_structure((leaves, dict.fromkeys(run.optimizer.variables, leaves), 0))


def _forwards(flat, run, adjoint, treedef, *, remember):
    values = Values(*optree.tree_unflatten(treedef, flat))
    with blas.pinned() as threads:
        run.report.blas_threads = threads
        done = *forwards(adjoint, run, values, remember=remember), threads
    _, _, state, _, watched, _ = done
    leaves = {name: run.layout.leaves(x) for name, x in state.variables.items()}
    out = leaves.pop("params"), leaves, np.array(watched)
    return optree.tree_leaves(out), done


def _run(*flat, run, adjoint, treedef):
    return tuple(_forwards(flat, run, adjoint, treedef, remember=False)[0])


def _stage(wanted, flat, static):
    boxes = [x for x in flat if isinstance(x, Box)]
    if boxes and all(isinstance(x.trace, Record) for x in boxes):
        *out, memory = _train_and_remember(*flat, wanted=wanted, **static)
        return tuple(out), lambda cts: _pull_back(memory, *cts)
    if boxes:
        raise MissingRule(
            f"{static['adjoint']!r} has first derivatives only, and train met a second trace (a "
            "grad of a grad, or a hessian); pass adjoint=Unrolled()."
        )
    run = static["run"]
    out, done = _forwards(flat, **static, remember=True)

    def pullback(cts):
        program, memory, state, steps, watched, threads = done
        variables, ct_watched = _read_cotangents(run, cts, watched)
        with blas.pinned(threads):
            found = backwards(program, memory, state, steps, variables, ct_watched)
        leaves = optree.tree_leaves(_cotangent_tree(run, program, found))
        return [cast(np.asarray(leaves[i])[()], dtype_of(flat[i])) for i in wanted]

    return tuple(out), pullback


def _read_cotangents(run, cts, watched):
    """(flat cotangent per variable, cotangent of watched or None) from those of the outputs."""
    nobody_watches = cts[-1] is None
    flat = [np.zeros(shape) for shape in run.layout.shapes]
    shapes = [*flat * (1 + len(run.optimizer.variables)), np.zeros(len(watched))]
    if any(isinstance(ct, Box) for ct in cts):
        raise MissingRule(
            "the pull-back of train met a traced cotangent (a second derivative); pass "
            "adjoint=Unrolled()."
        )
    cts = [z if ct is None else ct for ct, z in zip(cts, shapes, strict=True)]
    ct_params, ct_state, ct_watched = optree.tree_unflatten(_out_tree(run), cts)
    variables = {"params": run.layout.join(ct_params)}
    variables |= {name: run.layout.join(leaves) for name, leaves in ct_state.items()}
    return variables, None if nobody_watches else ct_watched


def _cotangent_tree(run, program, found):
    def leaves(name):
        return run.layout.split(found.variables[name])

    warm = {name: leaves(name) for name in program.values.warm}
    return [leaves("params"), warm, found.optimizer, found.hyper]


def _refuse_forward_mode(flat, adjoint):
    if any(isinstance(x, Box) and isinstance(x.trace, Push) for x in flat):
        raise MissingRule(
            f"{adjoint!r} has derivatives in reverse mode only, and train met forward mode (jvp, "
            "jacfwd, hvp, hessian); pass adjoint=Unrolled()."
        )


_train = Primitive("train", _run, stage=_stage, many=True)


# Both ways as primitives of their own, for recordings: what the way back needs is one more answer.


@dataclass(frozen=True, eq=False)
class _Memory:
    pullback: Callable


def _run_and_remember(*flat, wanted, **static):
    out, pullback = _stage(wanted, flat, static)
    return (*out, _Memory(pullback))


def _refuse_second_derivative(*_, **__):
    raise MissingRule(
        "train met a second derivative while recording; pass adjoint=Unrolled(), or do not compile."
    )


_train_and_remember = Primitive("train", _run_and_remember, many=True)
_pull_back = Primitive(
    "pull back train",
    lambda memory, *cts: tuple(memory.pullback(cts)),
    _refuse_second_derivative,
    _refuse_second_derivative,
    many=True,
)
