"""The list of what has a rule: python docs/make_functions.py > docs/functions.md"""

import inspect
import operator
import sys

import numpy as np
from scipy import special

import revgrad.rules.special  # noqa: F401
from revgrad.arrays import ArrayBox, functions
from revgrad.tape import Primitive

VERSION = ".".join(np.__version__.split(".")[:2])
HEAD = f"""\
# Functions with derivatives

For NumPy {VERSION}. Written by `python docs/make_functions.py > docs/functions.md` from the
registry of rules. Every one has both modes and derivatives of any order; float32 in, float32 out;
complex numbers where NumPy takes them.
Anything else raises `MissingRule` with the function's name. `revgrad.extend` adds more.
"""
FACTS = {
    *(np.shape, np.ndim, np.size, np.result_type, np.iscomplexobj, np.isrealobj, np.can_cast),
    *(np.common_type, np.min_scalar_type, np.einsum_path, np.may_share_memory, np.shares_memory),
}
NOTES = {
    "absolute, sign": "the derivative at 0 is 0.",
    "max, min, maximum, minimum, clip": "ties share equally.",
    "sort, partition, median": "of equal entries, by their place.",
    "power": "0 ** y has derivative 0 in y; a negative base, 0 in its exponent.",
    "cumprod, prod": "right at zeros too.",
    "linalg.norm": "the derivative at 0 is 0.",
    "linalg.cholesky, linalg.eigh, linalg.eigvalsh": "of the symmetric part of their matrix.",
    "linalg.eig, linalg.eigh, linalg.svd": "values must differ from one another; eigenvectors keep "
    "LAPACK's norm and phase; those of a complex svd are free to turn, so use what does not turn.",
    "linalg.svd": "full_matrices=True of square matrices only.",
    "linalg.lstsq, linalg.pinv, linalg.qr": "of matrices of full rank.",
    "einsum": "up to eight operands. `cross`: three components.",
    "quantile, percentile, interp, nanmedian": "by `method='linear'`; at a knot, of the piece to "
    "its right.",
    "compress, extract, unique, setdiff1d, trim_zeros, piecewise": "values decide the shape of the "
    "answer or of its parts: `compile` and `train` cannot record that and say so.",
    "unique": "of equal entries, the first.",
    "pad": "all modes but empty and functions.",
    "sum, mean, prod, max, min": "`where=`, `initial=` and `dtype=` too.",
    "divmod, modf, frexp": "of what does not jump.",
    "histogram, union1d, intersect1d, setxor1d, copyto, put, fill_diagonal": "refused, with what "
    "to write instead.",
    "scipy.special": "derivatives in an order or a shape parameter (the first of gammainc, the "
    "first two of betainc, the order of Bessel functions) are refused by name.",
}

# What autograd 1.9.1 differentiates and this does not, which tests/test_autograd.py checks.
NOT_HERE = {
    "numpy.full": "asks no protocol: np.broadcast_to(value, shape), or np.ones(shape) * value",
    "numpy.make_diagonal": "autograd's own: np.diag, or np.where with a mask",
    "numpy.concatenate_args": "inside autograd's np.concatenate",
    "numpy.array_from_args": "inside autograd's np.array, which here asks no protocol: np.stack",
    "numpy._original_where": "inside autograd's np.where",
    "numpy.linalg._primitive_norm": "inside autograd's np.linalg.norm",
    "numpy.fft.truncate_pad": "inside autograd's transforms",
    "scipy.integrate.odeint": "a solver of its own with an adjoint; no part of training",
}
FROM_AUTOGRAD = {
    "import autograd.numpy as np": "`import numpy as np`",
    "autograd.scipy": "`scipy`, or `revgrad.scipy` for what is listed above under its own name",
    "grad, value_and_grad, elementwise_grad, hessian, checkpoint": "the same names",
    "np.array([a, b])": "`np.stack([a, b])`, where a or b is traced",
    "jacobian, deriv": "`jacrev` or `jacfwd`, `jvp(f, (x,), (1.0,))[1]`",
    "make_vjp(f)(x)": "`vjp(f, x)`, which gives the value first",
    "make_jvp(f)(x)(v)": "`jvp(f, (x,), (v,))`",
    "make_hvp(f)(x)(v)": "`hvp(f, (x,), (v,))[1]`",
    "grad_and_aux(f)": "`grad(f, has_aux=True)`",
    "grad_named, multigrad_dict": "`grad` of a function of a dict, or of a tuple of argnums",
    "holomorphic_grad(f)": "`grad(lambda z: np.real(f(z)))`",
    "primitive, defvjp, defjvp": "`custom_rule`, or `revgrad.extend.define`",
    "autograd.builtins, autograd.misc.flatten": "not needed: any tree may be an argument",
    "test_util.check_grads": "`revgrad.testing.check_grads`",
}


def named(table, home, prefix=""):
    names = {
        prefix + name
        for name, f in vars(home).items()
        if not name.startswith("_") and callable(f) and _in(table, f)
    }
    return ", ".join(f"`{n}`" for n in sorted(names))


def _in(table, f):
    try:
        return f in table
    except TypeError:
        return False


def reductions(table):
    pairs = (k for k in table if isinstance(k, tuple))
    return ", ".join(sorted(f"`{f.__name__}.{method}`" for f, method in pairs))


def methods():
    names = (
        n
        for n, f in vars(ArrayBox).items()
        if not n.startswith("_") and getattr(f, "__name__", "") != "refuse"
    )
    return ", ".join(f"`x.{n}`" for n in sorted(names))


def under_their_names():
    from revgrad.scipy import linalg, signal, special, stats

    for module in (linalg, signal, special, stats):
        name = module.__name__.removeprefix("revgrad.")
        public = sorted(
            n
            for n, f in vars(module).items()
            if getattr(f, "__module__", "") == module.__name__ and not n.startswith("_")
        )
        yield f"`revgrad.{name}`: " + ", ".join(f"`{n}`" for n in public)


def coming_from_autograd():
    rows = [f"| `{theirs}` | {ours} |" for theirs, ours in FROM_AUTOGRAD.items()]
    missing = [f"- `{name}`: {reason}." for name, reason in NOT_HERE.items()]
    return "\n".join(
        [
            "| autograd | here |",
            "|---|---|",
            *rows,
            "",
            "All that autograd 1.9.1 differentiates has a rule here, in both modes, but:",
            "",
            *missing,
        ]
    )


def text():
    smooth = {
        k: f
        for k, f in functions.items()
        if k not in FACTS and not (isinstance(f, Primitive) and f.constant)
    }
    constant = {k: f for k, f in functions.items() if k not in smooth}
    operators = [n for n, f in inspect.getmembers(operator) if _in(smooth, f) and "_" not in n]
    sections = [
        ("Operators", ", ".join(f"`{n}`" for n in operators)),
        ("Methods and attributes", methods()),
        ("numpy", named(smooth, np) + ".\n\n" + reductions(smooth)),
        ("numpy.linalg", named(smooth, np.linalg)),
        ("numpy.fft", named(smooth, np.fft)),
        ("scipy.special", named(smooth, special)),
        ("SciPy's functions that ask no protocol", "\n\n".join(under_their_names())),
        ("Derivative zero", named(constant, np) + ", " + named(constant, np.linalg, "linalg.")),
        ("Coming from autograd", coming_from_autograd()),
        ("Notes", "\n".join(f"- {names}: {note}" for names, note in NOTES.items())),
    ]
    return "\n".join([HEAD, *(f"## {title}\n\n{body}\n" for title, body in sections)])


if __name__ == "__main__":
    sys.stdout.write(text())
