"""What users call: derivatives of functions of trees of arrays. Names and orders are JAX's."""

from dataclasses import fields, is_dataclass
from functools import wraps
from math import prod

import numpy as np
import optree

from revgrad import rules  # noqa: F401  (importing it fills the registry)
from revgrad.arrays import ArrayBox, plain
from revgrad.rules.row import cast, define, dtype_of, filled_like, match, shape_of
from revgrad.tape import Primitive, Pull, Push, pull_back


def vjp(f, *primals, has_aux=False):
    """Run f and prepare its pull-back.

    primals: trees of float arrays or Python floats; complex ones too.
    Returns (out, pullback), or (out, pullback, aux) where f returns (out, aux). pullback takes a
    cotangent tree like out and returns a tuple of cotangents like primals; it may be called again.
    out and aux are the caller's own: what is done to them in place changes neither primals nor
    pull-back. The primals themselves must stay as they are until the last pull-back.
    Raises: TypeError for leaves that are not real floats, naming the leaf's path; MissingRule.
    """
    return _vjp(lambda primals: f(*primals), primals, "primals", has_aux)


def _vjp(f, tree, what, has_aux=False):
    """vjp of a function of one tree, which errors call `what`."""
    leaves, treedef = flatten_floats(tree, what, "fc")
    with Pull(ArrayBox) as trace:
        boxes = [trace.input(x) for x in leaves]
        out, aux = _split_aux(f(optree.tree_unflatten(treedef, boxes)), has_aux)
        out_leaves, out_tree = optree.tree_flatten(out)
        values, nodes = zip(*map(trace.unwrap, out_leaves), strict=True) if out_leaves else ((), ())
        aux = optree.tree_map(lambda x: _own(trace.unwrap(x)[0]), aux)

    def pullback(cotangent):
        given = flatten_like(cotangent, out_tree, "the cotangent", "the function's result")
        cts = _matched(given, values, out_tree, "the cotangent")
        pairs = [(node, ct) for node, ct in zip(nodes, cts, strict=True) if node is not None]
        found = pull_back(pairs, [box.node for box in boxes])
        return optree.tree_unflatten(treedef, _answers(found, leaves, given))

    out = optree.tree_unflatten(out_tree, map(_own, values))
    return (out, pullback, aux) if has_aux else (out, pullback)


def jvp(f, primals, tangents, *, has_aux=False):
    """Push tangents forward through f: returns (out, tangent of out), and aux with has_aux.

    primals: tuple of trees of floats; tangents: the same trees. A tangent of None is zero.
    out, its tangent and aux share no memory with primals and tangents.
    Raises: TypeError for leaves that are not real floats or trees that differ.
    """
    for what, x in (("primals", primals), ("tangents", tangents)):
        if not isinstance(x, (tuple, list)):
            raise TypeError(f"{what} is {_describe(x)}; pass a tuple, one entry per argument of f.")
    leaves, treedef = flatten_floats(tuple(primals), "primals", "fc")
    given = _flatten_tangents(tuple(tangents), tuple(primals))
    ts = _matched(given, leaves, treedef, "tangents")
    with Push(ArrayBox) as trace:
        boxes = [x if t is None else trace.input(x, t) for x, t in zip(leaves, ts, strict=True)]
        out, aux = _split_aux(f(*optree.tree_unflatten(treedef, boxes)), has_aux)
        out_leaves, out_tree = optree.tree_flatten(out)
        values, found = zip(*map(trace.unwrap, out_leaves), strict=True) if out_leaves else ((), ())
        aux = optree.tree_map(lambda x: _own(trace.unwrap(x)[0]), aux)
    out = optree.tree_unflatten(out_tree, map(_own, values))
    tangent = optree.tree_unflatten(out_tree, _answers(found, values, given))
    return (out, tangent, aux) if has_aux else (out, tangent)


def value_and_grad(f, argnums=0, has_aux=False):
    """f -> (value, gradients); ((value, aux), gradients) with has_aux.

    f must return a real scalar (or scalar, aux). argnums: an int, or a tuple (then the gradients
    are a tuple). Gradients have the tree, shapes, dtypes and kinds of their arguments: a Python
    float for a Python float, a NumPy scalar for a NumPy scalar, an array for an array. At a complex
    x + iy it is df/dx - i df/dy: step along its conjugate.
    Raises: TypeError if the result is not a scalar float or an argument has leaves that are not.
    """

    @wraps(f)
    def value_and_gradient(*args, **kwargs):
        function, chosen, as_argnums = _select(f, args, kwargs, argnums)
        value, pullback, *aux = _vjp(function, chosen, "argument", has_aux)
        check_scalar(value, getattr(f, "__name__", "the function"))
        grads = pullback(np.ones_like(value) if hasattr(value, "dtype") else 1.0)
        return ((value, *aux) if has_aux else value), as_argnums(grads)

    return value_and_gradient


def grad(f, argnums=0, has_aux=False):
    """f -> its gradients; (gradients, aux) with has_aux. See value_and_grad."""
    both = value_and_grad(f, argnums, has_aux)

    @wraps(f)
    def gradient(*args, **kwargs):
        value, grads = both(*args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return gradient


def elementwise_grad(f, argnums=0):
    """f -> its derivative entry by entry, where each entry of the result hangs on its own alone.

    As the gradient of np.sum of f: for functions of any shape, to be plotted or nested.
    """

    @wraps(f)
    def derivative(*args, **kwargs):
        function, chosen, as_argnums = _select(f, args, kwargs, argnums)
        out, pullback = _vjp(function, chosen, "argument")
        return as_argnums(pullback(optree.tree_map(_ones, out)))

    return derivative


def _ones(x):
    return np.ones_like(plain(x)) if hasattr(x, "dtype") else 1.0


def hvp(f, primals, tangents):
    """Hessian of a scalar function of its first argument, times a tangent: (gradient, product).

    primals: tuple, f's arguments; tangents: tuple like it. The derivative of the gradient with
    respect to primals[0] in the direction `tangents`, forward over reverse.
    """
    return jvp(grad(f), primals, tangents)


def jacrev(f, argnums=0):
    """f -> its Jacobian, a row of pull-backs: leaves of shape out.shape + argument.shape.

    A tree like out, with trees like the argument (a tuple of them for a tuple of argnums) inside.
    """

    @wraps(f)
    def jacobian(*args, **kwargs):
        function, chosen, as_argnums = _select(f, args, kwargs, argnums)
        flatten_floats(chosen, "argument")
        out, pullback = _vjp(function, chosen, "argument")
        leaves, tree = optree.tree_flatten(out)
        if any(_kind(plain(x)) == "c" for x in leaves):
            raise TypeError("jacrev of a complex result; give jacrev its np.real and np.imag.")
        blocks = []
        for i, leaf in enumerate(leaves):
            rows = [pullback(optree.tree_unflatten(tree, e)) for e in _basis(leaves, i)]
            blocks.append(_stack_trees(rows, chosen, 0, shape_of(leaf)))
        return optree.tree_unflatten(tree, map(as_argnums, blocks))

    return jacobian


def jacfwd(f, argnums=0):
    """f -> its Jacobian, a column of push-forwards: leaves of shape out.shape + argument.shape.

    The same trees as jacrev, in the dtypes of the arguments too.
    """

    @wraps(f)
    def jacobian(*args, **kwargs):
        function, chosen, as_argnums = _select(f, args, kwargs, argnums)
        leaves, tree = flatten_floats(chosen, "argument")
        pushed = []
        for i in range(len(leaves)):
            units = (optree.tree_unflatten(tree, e) for e in _basis(leaves, i))
            pushed.append([jvp(function, (chosen,), (e,)) for e in units])
        out = next((out for column in pushed for out, _ in column), None)
        out = function(chosen) if out is None else out
        blocks = [
            _of_argument(_stack_trees([t for _, t in column], out, -1, shape_of(x)), x)
            for column, x in zip(pushed, leaves, strict=True)
        ]
        by_argument, out_tree = [*map(optree.tree_leaves, blocks)], optree.tree_structure(out)
        inner = [
            as_argnums(optree.tree_unflatten(tree, [leaves[j] for leaves in by_argument]))
            for j in range(out_tree.num_leaves)
        ]
        return optree.tree_unflatten(out_tree, inner)

    return jacobian


def hessian(f, argnums=0):
    """f -> its second derivatives, forward over reverse: shape argument.shape twice."""
    return jacfwd(grad(f, argnums), argnums)


def stop_gradient(x):
    """x (a tree) with a derivative of zero, at this and every older trace."""
    return optree.tree_map(_stop, x)


_stop = Primitive("stop_gradient", lambda x: x, constant=True)
_NUMBERS = (np.ndarray, np.generic, float, complex)
_complex = define("complex", complex, ["linear"], [lambda ct, out, x: ct], register=False)
_float = define("float", float, ["linear"], [lambda ct, out, x: ct], register=False)
_array = define("array", np.array, ["linear"], [lambda ct, out, x: ct], register=False)


def flatten_floats(tree, what, kinds="f"):
    """Leaves and treedef of a tree whose leaves must all be real floats; errors name the path."""
    leaves, treedef = optree.tree_flatten(tree)
    for k, leaf in enumerate(leaves):
        if _kind(plain(leaf)) not in kinds:
            raise TypeError(
                f"{what}{_path(treedef, k)} is {_describe(leaf)}, which has no derivative; "
                f"{_instead(leaf)}, or keep it out of the differentiated tree."
            )
    return leaves, treedef


def _instead(leaf):
    if is_dataclass(leaf):
        return "decorate its class with revgrad.extend.as_tree, which makes a tree of its fields"
    return "pass real floats, e.g. x.astype(float)"


def as_tree(cls):
    """Class decorator, above @dataclass: an instance is a tree of its fields, in their order."""
    names = [f.name for f in fields(cls)]

    def unflatten(_, values):
        new = object.__new__(cls)  # what __init__ would compute or check may be boxes, or none
        for name, value in zip(names, values, strict=True):
            object.__setattr__(new, name, value)
        return new

    optree.register_pytree_node(
        cls,
        lambda x: ([getattr(x, n) for n in names], None, names),
        unflatten,
        path_entry_type=optree.GetAttrEntry,
        namespace=optree.registry.__GLOBAL_NAMESPACE,
    )
    return cls


def flatten_like(tree, treedef, what, like):
    """Leaves of a tree that must have structure `treedef`."""
    leaves, found = optree.tree_flatten(tree)
    if found != treedef:
        raise TypeError(
            f"{what} has structure {found}, but {like} has {treedef}; the containers must be the "
            "same (a list is not a tuple)."
        )
    return leaves


def zeros_like(x):
    """Zeros of x's kind, shape and dtype, not traced."""
    x = plain(x)
    if not hasattr(x, "dtype"):
        return type(x)(0) if isinstance(x, (float, complex)) else np.zeros_like(x)
    return x.dtype.type(0) if isinstance(x, np.generic) else np.zeros_like(x)


def check_scalar(value, name):
    """Refuse what has no gradient."""
    if _kind(plain(value)) != "f" or shape_of(value) != ():
        raise TypeError(
            f"{name} returned {_describe(value)}; a gradient needs one real float. Use np.sum or "
            "np.mean, has_aux=True for further results, or jacrev."
        )


def _select(f, args, kwargs, argnums):
    """Take apart what is differentiated.

    Returns (f as a function of it, it as {position: argument}, function that puts such a dict in
    the form of argnums).
    """
    one = not isinstance(argnums, (tuple, list))
    try:
        positions = [range(len(args))[i] for i in ([argnums] if one else argnums)]
    except IndexError:
        raise TypeError(
            f"argnums={argnums!r}, but {len(args)} arguments were given by position; pass what is "
            "differentiated by position."
        ) from None

    def function(chosen):
        return f(*(chosen.get(i, a) for i, a in enumerate(args)), **kwargs)

    def as_argnums(chosen):
        return chosen[positions[0]] if one else tuple(chosen[i] for i in positions)

    return function, {i: args[i] for i in positions}, as_argnums


def _kind(x):
    if hasattr(x, "dtype"):
        return getattr(x.dtype, "kind", "?")
    return "f" if isinstance(x, float) else "c" if isinstance(x, complex) else "?"


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


def _path(treedef, k):
    """Where leaf k is, as one would write it: "[0]['weights']"."""
    return "".join(f"[{p!r}]" for p in optree.treespec_paths(treedef)[k])


def _flatten_tangents(tangents, primals):
    if len(tangents) != len(primals):
        raise TypeError(f"{len(primals)} primals but {len(tangents)} tangents.")
    filled = []
    for t, p in zip(tangents, primals, strict=True):
        leaves, tree = optree.tree_flatten(p)
        filled += (
            [None] * len(leaves) if t is None else flatten_like(t, tree, "a tangent", "its primal")
        )
    return filled


def _matched(given, values, treedef, what):
    """Tangents or cotangents, checked and given the array type and dtype of their values."""
    for k, (t, value) in enumerate(zip(given, values, strict=True)):
        if t is not None and shape_of(t) != shape_of(value):
            raise TypeError(
                f"{what}{_path(treedef, k)} has shape {shape_of(t)}, its value {shape_of(value)}."
            )
        numbers = "fiubc" if _kind(plain(value)) == "c" else "fiub"
        if t is not None and dtype_of(t).kind not in numbers:
            raise TypeError(
                f"{what}{_path(treedef, k)} is {_describe(t)}; real numbers are wanted."
            )
    return [t if t is None else match(t, value) for t, value in zip(given, values, strict=True)]


def _answers(found, likes, given):
    """Derivatives that are the caller's own: writeable, and sharing no memory.

    found: None is zero; likes: the values they belong to, a Python float for a Python float;
    given: what came from the caller. Traced or not, the same is copied: copies order memory anew.
    """
    taken, answers = {id(_owner(x)) for x in given}, []
    for x, like in zip(found, likes, strict=True):
        x = zeros_like(like) if x is None else in_kind(x, like)
        value = plain(x)
        if isinstance(value, np.ndarray) and (id(_owner(x)) in taken or not value.flags.writeable):
            x = np.copy(x)
        taken.add(id(_owner(x)))
        answers.append(x)
    return answers


def _own(x):
    """A copy of an array that f returned, which may be its argument or what a pull-back needs.

    In the same steps through memory, as later sums and functions see them. What is traced stays:
    nobody can change it in place, and the older trace ends here too.
    """
    if not isinstance(x, np.ndarray):
        return x.copy("K") if hasattr(x, "strides") and not isinstance(x, np.generic) else x
    if x.flags.c_contiguous or x.flags.f_contiguous or x.dtype.hasobject:
        return x.copy("K")
    span = [(n - 1) * s for n, s in zip(x.shape, x.strides, strict=True)] if x.size else []
    first, last = -sum(s for s in span if s < 0), sum(s for s in span if s > 0)
    memory = np.empty(first + last + x.itemsize, np.uint8)
    copy = np.ndarray(x.shape, x.dtype, memory, first, x.strides)
    copy[...] = x
    return copy


def in_kind(x, like):
    """A number as a Python float, a NumPy scalar or an array of no axis, as `like` is."""
    value, like = plain(x), plain(like)
    known = isinstance(value, _NUMBERS) and isinstance(like, _NUMBERS)
    if type(value) is type(like) or shape_of(value) or not known:
        return x
    if not hasattr(like, "dtype"):
        return _complex(x) if isinstance(like, complex) else _float(x)
    x = x if isinstance(value, np.ndarray) else _array(x)
    return x if isinstance(like, np.ndarray) else x[()]


def _owner(x):
    """The array whose memory x shows."""
    x = plain(x)
    while isinstance(x, np.ndarray) and x.base is not None:
        x = x.base
    return x


def _basis(leaves, i):
    """The unit vectors of leaf i, each as a list of leaves that is zero elsewhere."""
    unit_of, shape = plain(leaves[i]), shape_of(leaves[i])
    for k in range(prod(shape)):
        vector = [zeros_like(x) for x in leaves]
        unit = filled_like(np.zeros_like, unit_of, shape=prod(shape))
        unit[k] = 1
        vector[i] = np.reshape(unit, shape)
        yield vector


def _of_argument(blocks, x):
    """Blocks of a Jacobian in the argument's precision, and in its kind where they are numbers."""

    def convert(block):
        if dtype_of(block).kind == "c":
            return cast(block, np.result_type(dtype_of(x), np.complex64))
        return in_kind(cast(block, dtype_of(x)), x)

    return optree.tree_map(convert, blocks)


def _stack_trees(trees, like, axis, shape):
    """Stack the leaves of trees on an axis, the first or the last, and unfold it into `shape`."""
    leaves, treedef = optree.tree_flatten(like)
    columns = zip(*map(optree.tree_leaves, trees), strict=True) if trees else [()] * len(leaves)
    stacked = []
    for x, column in zip(leaves, columns, strict=True):
        full = (*shape, *shape_of(x)) if axis == 0 else (*shape_of(x), *shape)
        if not column:
            stacked.append(filled_like(np.zeros_like, plain(x), shape=full))
        else:
            stacked.append(np.reshape(np.stack(column, axis), full) if full else column[0])
    return optree.tree_unflatten(treedef, stacked)


__all__ = [
    "elementwise_grad",
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
