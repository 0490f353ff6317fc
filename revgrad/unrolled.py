"""Training in float arithmetic on the tape: the way of `Unrolled`, the oracle for the others."""

from functools import partial
from time import perf_counter

import numpy as np
import optree

from revgrad.arrays import ArrayBox, plain
from revgrad.errors import ClosureError
from revgrad.gradient import CLOSURE, split_aux
from revgrad.sweeps import stops, watched_plainly
from revgrad.tape import Box, Pull, pull_back
from revgrad.transforms import check_scalar, zeros_like


def unroll(run, values):
    """(params leaves, state leaves, watched values), on the tape as far as `values` are."""
    began, layout, watched = perf_counter(), run.layout, []
    variables = {"params": [np.copy(x) for x in values.params]}  # the caller's arrays stay theirs
    for name in run.optimizer.variables:
        given = values.warm.get(name) or run.layout_of(name).zeros()
        variables[name] = [np.copy(x) for x in given]
    steps = run.steps
    for t in range(run.steps):
        if run.watch is not None:
            watched.append(_watch(run, t, variables["params"]))
        loss, aux, g = _gradient(run, variables["params"], run.hyper_leaves(values, t), t)
        variables = run.optimizer.float_step(
            variables, g, partial(run.hyper_at_leaf, values, t), run.first_t + t + 1,
            None if run.aux_layout is None else optree.tree_leaves(aux),
        )  # fmt: skip
        if run.callback is not None and stops(run, t, loss, aux):
            steps = t + 1
            break
    run.outcome["steps"] = steps
    run.report.steps, run.report.weights = steps, layout.size
    run.report.watched = [float(plain(x)) for x in watched]
    run.report.seconds = perf_counter() - began
    trained = variables.pop("params")
    return trained, variables, np.stack(watched) if watched else np.array([])


def _watch(run, t, leaves):
    if not any(isinstance(x, Box) for x in leaves):
        return watched_plainly(run, t, [np.copy(x) for x in leaves])
    with Pull(ArrayBox) as trace:
        out = run.watch(t, run.layout.unflatten([trace.input(x) for x in leaves]))
        return _refuse_closures(trace, out)[0]


def _gradient(run, leaves, hyper, t):
    """(plain loss, aux, gradient, the two as far as they are traced)."""
    with Pull(ArrayBox) as trace:
        inputs, given = ([trace.input(x) for x in xs] for xs in (leaves, hyper))
        out = run.loss(run.layout.unflatten(inputs), run.hyper_tree(given), run.batch(t))
        out, aux = split_aux(out, run.has_aux)
        check_scalar(out, "the loss")
        value, node = _refuse_closures(trace, out)
        unwrap = trace.unwrap if run.aux_layout is None else partial(_refuse_closures, trace)
        aux = optree.tree_map(lambda x: unwrap(x)[0], aux)
        ones = np.ones_like(plain(value)) if hasattr(plain(value), "dtype") else 1.0
        found = pull_back([] if node is None else [(node, ones)], [x.node for x in inputs])
    g = [zeros_like(x) if ct is None else ct for x, ct in zip(leaves, found, strict=True)]
    return plain(value), aux, g


def _refuse_closures(trace, out):
    """(value, node) of a result; ClosureError if a box of an older trace went into it unseen."""
    value, node = trace.unwrap(out)
    if node is None:
        stack = []
        if isinstance(value, Box):
            raise ClosureError(CLOSURE)
    else:
        stack = [node[0]]
    seen = set(stack)
    while stack:
        call = stack.pop()
        own = {i for i, _, _ in call.parents}
        if any(isinstance(x, Box) and i not in own for i, x in enumerate(call.args)):
            raise ClosureError(CLOSURE)
        new = {parent for _, parent, _ in call.parents} - seen
        seen |= new
        stack += new
    return value, node
