"""scipy.signal.convolve and correlate. All other names are SciPy's own, without rules."""

import numpy as np
import scipy.signal as _signal

from revgrad._ext.homes import at_home
from revgrad.rules.row import cast, define, derived, dtype_of, is_complex, shape_of

_plain_convolve = at_home(_signal.convolve, "signal")


def _pull_full(ct, x, other):
    return cast(convolve(ct, np.flip(other), "valid"), dtype_of(x))


_full = define(
    "convolve",
    lambda a, b: _plain_convolve(a, b, "full"),
    ("linear", "linear"),
    [lambda ct, out, a, b: _pull_full(ct, a, b), lambda ct, out, a, b: _pull_full(ct, b, a)],
    register=False,
)
_valid = define(
    "convolve where all overlap",
    lambda a, b: _plain_convolve(a, b, "valid"),
    ("linear", "linear"),
    [
        lambda ct, out, a, b: cast(convolve(ct, np.flip(b), "full"), dtype_of(a)),
        lambda ct, out, a, b: cast(np.flip(convolve(a, np.flip(ct), "valid")), dtype_of(b)),
    ],
    register=False,
)


def _centre(a, b):
    starts = [(m - 1) // 2 for m in shape_of(b)]
    return _full(a, b)[tuple(slice(s, s + n) for s, n in zip(starts, shape_of(a), strict=True))]


_same = derived("convolve to the same size", lambda a, b: _plain_convolve(a, b, "same"), _centre)


def convolve(in1, in2, mode="full"):
    """As scipy.signal.convolve, of any number of axes; mode is "full", "same" or "valid"."""
    if mode == "valid" and any(n < m for n, m in zip(shape_of(in1), shape_of(in2), strict=True)):
        in1, in2 = in2, in1
    return {"full": _full, "same": _same, "valid": _valid}[mode](in1, in2)


def correlate(in1, in2, mode="full"):
    """As scipy.signal.correlate, where in2 is the smaller array in mode "valid"."""
    in2 = np.flip(np.conj(in2) if is_complex(in2) else in2)
    return convolve(in1, in2, mode)


def __getattr__(name):
    return getattr(_signal, name)
