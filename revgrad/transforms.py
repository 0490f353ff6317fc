"""What users call: derivatives of functions of trees of arrays. Names and orders are JAX's."""

from functools import wraps

import numpy as np
import optree

from revgrad import rules  # noqa: F401  (importing it fills the registry)
from revgrad.arrays import ArrayBox, plain
from revgrad.rules.row import dtype_of, match, shape_of
from revgrad.tape import Primitive, Pull, Push, pull_back


def vjp(f, *primals, has_aux=False):
    """Run f and prepare its pull-back.

    primals: trees of float arrays or Python floats.
    Returns (out, pullback), or (out, pullback, aux) where f returns (out, aux). pullback takes a
    cotangent tree like out and returns a tuple of cotangents like primals; it may be called again.
    Raises: TypeError for leaves that are not real floats, naming the leaf's path; MissingRule.
    """
    leaves, treedef = flatten_floats(primals, "primals")
    with Pull(ArrayBox) as trace:
        boxes = [trace.input(x) for x in leaves]
        out, aux = _split_aux(f(*optree.tree_unflatten(treedef, boxes)), has_aux)
        out_leaves, out_tree = optree.tree_flatten(out)
        values, nodes = zip(*map(trace.unwrap, out_leaves), strict=True) if out_leaves else ((), ())
        aux = optree.tree_map(lambda x: trace.unwrap(x)[0], aux)

    def pullback(cotangent):
        cts = flatten_like(cotangent, out_tree, "the cotangent", "the function's result")
        pairs = [
            (node, match(_checked(ct, value), value))
            for node, ct, value in zip(nodes, cts, values, strict=True)
            if node is not None
        ]
        found = pull_back(pairs, [box.node for box in boxes])
        cts = [
            zeros_like(x) if ct is None else _own(ct) for ct, x in zip(found, leaves, strict=True)
        ]
        return optree.tree_unflatten(treedef, cts)

    out = optree.tree_unflatten(out_tree, values)
    return (out, pullback, aux) if has_aux else (out, pullback)


def jvp(f, primals, tangents, *, has_aux=False):
    """Push tangents forward through f: returns (out, tangent of out), and aux with has_aux.

    primals: tuple of trees of floats; tangents: the same trees. A tangent of None is zero.
    Raises: TypeError for leaves that are not real floats or trees that differ.
    """
    leaves, treedef = flatten_floats(tuple(primals), "primals")
    ts = _flatten_tangents(tuple(tangents), tuple(primals), treedef)
    with Push(ArrayBox) as trace:
        boxes = [
            x if t is None else trace.input(x, match(_checked(t, x), x))
            for x, t in zip(leaves, ts, strict=True)
        ]
        out, aux = _split_aux(f(*optree.tree_unflatten(treedef, boxes)), has_aux)
        out_leaves, out_tree = optree.tree_flatten(out)
        pairs = [trace.unwrap(x) for x in out_leaves]
        aux = optree.tree_map(lambda x: trace.unwrap(x)[0], aux)
    out = optree.tree_unflatten(out_tree, [x for x, _ in pairs])
    tangent = optree.tree_unflatten(out_tree, [zeros_like(x) if t is None else t for x, t in pairs])
    return (out, tangent, aux) if has_aux else (out, tangent)


def value_and_grad(f, argnums=0, has_aux=False):
    """f -> (value, gradients); ((value, aux), gradients) with has_aux.

    f must return a real scalar (or scalar, aux). argnums: an int, or a tuple (then the gradients
    are a tuple). Gradients have the tree, shapes and dtypes of their arguments.
    Raises: TypeError if the result is not a scalar float or an argument has leaves that are not.
    """

    @wraps(f)
    def value_and_gradient(*args, **kwargs):
        wanted = (argnums,) if isinstance(argnums, int) else tuple(argnums)
        wanted = tuple(range(len(args))[i] for i in wanted)

        def partial_f(*chosen):
            rest = dict(zip(wanted, chosen, strict=True))
            return f(*(rest.get(i, a) for i, a in enumerate(args)), **kwargs)

        value, pullback, *aux = vjp(partial_f, *(args[i] for i in wanted), has_aux=has_aux)
        check_scalar(value, getattr(f, "__name__", "the function"))
        grads = pullback(np.ones_like(value) if hasattr(value, "dtype") else 1.0)
        grads = grads[0] if isinstance(argnums, int) else grads
        return ((value, *aux) if has_aux else value), grads

    return value_and_gradient


def grad(f, argnums=0, has_aux=False):
    """f -> its gradients; (gradients, aux) with has_aux. See value_and_grad."""
    both = value_and_grad(f, argnums, has_aux)

    @wraps(f)
    def gradient(*args, **kwargs):
        value, grads = both(*args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return gradient


def hvp(f, primals, tangents):
    """Hessian of a scalar function of its first argument, times a tangent: (gradient, product).

    primals: tuple, f's arguments; tangents: tuple like it. The derivative of the gradient with
    respect to primals[0] in the direction `tangents`, forward over reverse.
    """
    return jvp(grad(f), primals, tangents)


def jacrev(f, argnums=0):
    """f -> its Jacobian, a row of pull-backs: leaves of shape out.shape + argument.shape."""

    @wraps(f)
    def jacobian(*args):
        out, pullback = vjp(_fix(f, args, argnums), args[argnums])
        leaves, tree = optree.tree_flatten(out)
        blocks = []
        for i, leaf in enumerate(leaves):
            rows = [
                pullback(optree.tree_unflatten(tree, _one_hot(leaves, i, k)))[0]
                for k in range(np.size(plain(leaf)))
            ]
            blocks.append(_stack_trees(rows, shape_of(leaf), 0, args[argnums]))
        return optree.tree_unflatten(tree, blocks)

    return jacobian


def jacfwd(f, argnums=0):
    """f -> its Jacobian, a column of push-forwards: leaves of shape out.shape + argument.shape."""

    @wraps(f)
    def jacobian(*args):
        leaves, tree = flatten_floats(args[argnums], "the argument")
        blocks = []
        for i, leaf in enumerate(leaves):
            columns = []
            for k in range(np.size(plain(leaf))):
                tangent = optree.tree_unflatten(tree, _one_hot(leaves, i, k))
                out, column = jvp(_fix(f, args, argnums), (args[argnums],), (tangent,))
                columns.append(column)
            if not columns:
                out = columns = jvp(_fix(f, args, argnums), (args[argnums],), (None,))[0]
            blocks.append(_stack_trees(columns, shape_of(leaf), -1, out))
        # from [in leaf][out tree] to [out tree][in tree]
        out_tree = optree.tree_structure(out)
        by_out = zip(*map(optree.tree_leaves, blocks), strict=True)
        return optree.tree_unflatten(out_tree, [optree.tree_unflatten(tree, b) for b in by_out])

    return jacobian


def hessian(f, argnums=0):
    """f -> its second derivatives, forward over reverse: shape argument.shape twice."""
    return jacfwd(grad(f, argnums), argnums)


def stop_gradient(x):
    """x (a tree) with a derivative of zero, at this and every older trace."""
    return optree.tree_map(_stop, x)


_stop = Primitive("stop_gradient", lambda x: x, constant=True)


def flatten_floats(tree, what):
    """Leaves and treedef of a tree whose leaves must all be real floats; errors name the path."""
    leaves, treedef = optree.tree_flatten(tree)
    for k, leaf in enumerate(leaves):
        kind = _kind(plain(leaf))
        if kind != "f":
            path = optree.treespec_paths(treedef)[k]
            name = "".join(f"[{p!r}]" for p in path)
            raise TypeError(
                f"{what}{name} is {_describe(leaf)}, which has no derivative; "
                "pass real floats, e.g. x.astype(float), or keep it out of the differentiated tree."
            )
    return leaves, treedef


def flatten_like(tree, treedef, what, like):
    """Leaves of a tree that must have structure `treedef`."""
    leaves, found = optree.tree_flatten(tree)
    if found != treedef:
        raise TypeError(f"{what} has structure {found}, but {like} has {treedef}.")
    return leaves


def zeros_like(x):
    """Zeros of x's shape and dtype, not traced."""
    x = plain(x)
    return 0.0 if isinstance(x, float) and not hasattr(x, "dtype") else np.zeros_like(x)


def check_scalar(value, name):
    """Refuse what has no gradient."""
    if shape_of(value) != () or _kind(plain(value)) != "f":
        raise TypeError(
            f"{name} returned {_describe(value)}; a gradient needs one real float. Use np.sum or "
            "np.mean, has_aux=True for further results, or jacrev."
        )


def _kind(x):
    if hasattr(x, "dtype"):
        return getattr(x.dtype, "kind", "?")
    return "f" if isinstance(x, float) else "?"


def _describe(x):
    x = plain(x)
    if hasattr(x, "dtype"):
        return f"an array of {x.dtype} and shape {x.shape}" if x.shape else f"a {x.dtype}"
    return f"a {type(x).__name__}"


def _split_aux(out, has_aux):
    if not has_aux:
        return out, None
    if not isinstance(out, tuple) or len(out) != 2:
        raise TypeError(
            f"has_aux=True needs a function that returns (out, aux), not {_describe(out)}."
        )
    return out


def _checked(ct, value):
    if shape_of(ct) != shape_of(value):
        raise TypeError(
            f"a tangent or cotangent has shape {shape_of(ct)}, its value {shape_of(value)}."
        )
    return ct


def _flatten_tangents(tangents, primals, treedef):
    if len(tangents) != len(primals):
        raise TypeError(f"{len(primals)} primals but {len(tangents)} tangents.")
    filled = []
    for t, p in zip(tangents, primals, strict=True):
        leaves, tree = optree.tree_flatten(p)
        filled += (
            [None] * len(leaves) if t is None else flatten_like(t, tree, "a tangent", "its primal")
        )
    return filled


def _own(ct):
    """Answers must not be read-only views of broadcast numbers."""
    return ct.copy() if isinstance(ct, np.ndarray) and not ct.flags.writeable else ct


def _fix(f, args, argnum):
    return lambda x: f(*args[:argnum], x, *args[argnum + 1 :])


def _one_hot(leaves, i, k):
    """A tree's leaves, all zero but entry k of leaf i."""
    basis = [zeros_like(x) for x in leaves]
    one = np.zeros(np.size(plain(leaves[i])), dtype_of(leaves[i]))
    one[k] = 1
    basis[i] = np.reshape(one, shape_of(leaves[i]))
    return basis


def _stack_trees(trees, shape, axis, like):
    """Stack the leaves of equal trees on one axis and unfold it into `shape`, first or last."""
    like_leaves, treedef = optree.tree_flatten(like)
    columns = list(zip(*map(optree.tree_leaves, trees), strict=True)) if len(trees) else None
    stacked = []
    for j, leaf in enumerate(like_leaves):
        part = shape_of(leaf)
        full = (*shape, *part) if axis == 0 else (*part, *shape)
        if columns is None:
            stacked.append(np.zeros(full, dtype_of(leaf)))
        else:
            stacked.append(np.reshape(np.stack(columns[j], axis), full))
    return optree.tree_unflatten(treedef, stacked)


__all__ = [
    "grad",
    "hessian",
    "hvp",
    "jacfwd",
    "jacrev",
    "jvp",
    "stop_gradient",
    "value_and_grad",
    "vjp",
]
