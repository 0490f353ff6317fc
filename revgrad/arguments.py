"""What a door that trains is given: checked, refused with advice, and taken apart."""

import os
from types import NoneType

import numpy as np
import optree

from revgrad.arrays import plain
from revgrad.gradient import split_aux
from revgrad.hyper import HyperTree, Spread, is_per_step, resolve, whole_number
from revgrad.resume import Saving
from revgrad.rules.row import cast
from revgrad.state import Layout, Run, Values
from revgrad.transforms import flatten_floats, flatten_like


def take_apart(
    loss, params, optimizer, batches, *, steps, hyper, state, has_aux, watch, watch_moves, callback,
    report, arithmetic, saving,
):  # fmt: skip
    """(Run, Values) of what a user gave; see `train`. Raises: what the checks below raise."""
    batch, steps = check_batches(batches, steps)
    leaves, layout = _check_params(params)
    hyper_leaves, hyper_every, hyper_tree = _take_hyper(hyper, steps, layout)
    layouts = {"params": layout}
    if "aux" in optimizer.reads:
        now = hyper_tree(_at_first_step(hyper_leaves, hyper_every))
        layouts["aux"] = _aux_layout(optimizer, loss, has_aux, _plain(params), now, batch, steps)
    warm, first_t = _check_state(state, optimizer, layouts)
    spreads, optimizer_values = spread_hyper(optimizer, steps, layouts)
    first = lambda name, k: spreads[name].at_leaf(optimizer_values[name], k, 0)
    warm = optimizer.start(leaves, first) | warm
    optimizer.refuse_closures()
    run = Run(
        loss=loss, has_aux=has_aux, optimizer=_without_values(optimizer), batch=batch, steps=steps,
        first_t=first_t, layout=layout, spreads=spreads, hyper_tree=hyper_tree,
        hyper_every=hyper_every, watch=watch if watch_moves else _untraced(watch),
        watch_moves=watch_moves,
        callback=callback, report=report, arithmetic=arithmetic, aux_layout=layouts.get("aux"),
        saving=saving, outcome={"warm": [*warm]},
    )  # fmt: skip
    return run, Values(leaves, warm, optimizer_values, hyper_leaves)


def check_save(save, every):
    if save is None:
        if every is not None:
            raise ValueError(f"save_every={every!r} without save=; pass a path to save to.")
        return None
    folder = os.path.dirname(os.path.abspath(save))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"save={str(save)!r}: there is no folder {folder}; make it first.")
    return Saving(save, every if every is None else whole_number(every, "save_every", 1))


def check_batches(batches, steps):
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


def _aux_layout(optimizer, loss, has_aux, params, hyper, batch, steps):
    """The layout of what the loss returns beside its value."""
    if not has_aux or not steps:
        what = "has_aux=True, and return (scalar, aux)" if steps else "steps=1 or more"
        raise TypeError(f"{optimizer.name} reads the aux of the loss; pass {what}.")
    _, aux = split_aux(loss(params, hyper, batch(0)), has_aux)
    leaves, tree = flatten_floats(aux, "the loss's aux")
    layout = Layout([plain(x) for x in leaves], tree, of="aux")
    for path, dtype in zip(layout.paths, layout.dtypes, strict=True):
        if dtype not in (np.float32, np.float64):
            raise TypeError(f"aux{path} is {dtype}; statements read float32 and float64.")
    return layout


def _layout_of(name, optimizer, layouts):
    return layouts["aux" if name in optimizer.aux_names else "params"]


def _check_state(state, optimizer, layouts):
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
        layout = _layout_of(name, optimizer, layouts)
        warm[name], _ = flatten_floats(value, what)
        flatten_like(value, layout.tree, what, f"the tree of the {layout.of}")
        shapes = [np.shape(plain(x)) for x in warm[name]]
        for path, came, wanted in zip(layout.paths, shapes, layout.shapes, strict=True):
            if came != wanted:
                like = f"{layout.of}{path} has {wanted}"
                raise ValueError(f"{what}{path} has shape {came}, but {like}.")
    return warm, first_t


def spread_hyper(optimizer, steps, layouts):
    spreads, values = {}, {}
    for name, tree in optimizer.hyper.items():
        where = f"{optimizer.name}({name}=...)"
        tree = resolve(tree, steps)
        _refuse_other_than_floats(tree, where)
        layout = _layout_of(name, optimizer, layouts)
        spreads[name], values[name] = Spread.of(where, tree, layout)
        if name in optimizer.shared and not spreads[name].scalar:
            raise TypeError(
                f"{where} is read by statements about the params and by ones about aux, which have "
                "trees of their own; give one number, or two hyperparameters."
            )
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
    return optimizer.with_hyper(dict.fromkeys(optimizer.hyper, 0.0))


def _untraced(watch):
    """watch, of plain params: nobody asked for its derivative, and it need not have one."""
    return watch and (lambda t, params: watch(t, optree.tree_map(plain, params)))


def _plain(tree):
    return optree.tree_map(plain, tree)


def _at_first_step(leaves, every):
    pairs = zip(leaves, every, strict=True)
    return [plain(x) if e is None else plain(x)[0] for x, e in pairs]
