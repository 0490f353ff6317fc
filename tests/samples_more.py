"""Samples of functions that are called less often: places, borders, quantiles, curves."""

import operator

import numpy as np
from samples import ONE, add, direct

# Entries moved.
add([np.insert], lambda f, x, y: f(x, 1, y), ((3,), ()), ((3,), (2,)), ((2, 3), ()))
add([np.insert], lambda f, x, y: f(x, [0, 2, 2], y, axis=1), ((2, 3), (2, 3)), ((2, 3), (3,)))
add([np.insert], lambda f, x, y: f(x, slice(0, 2), y, axis=-2), ((2, 3), ()))
add([np.insert], lambda f, x: f(x, -1, 2.0), ((3,),), host="the number")
add([np.delete], lambda f, x: f(x, 1), ((3,),), ((2, 3),))
add([np.delete], lambda f, x: f(x, [0, -1], axis=1), ((2, 3),))
add([np.delete], lambda f, x: f(x, slice(None, None, 2), axis=0), ((4, 2),))
_mask = np.array([True, False, True])
add([np.compress], lambda f, x: f(_mask, x, axis=-1), ((2, 3),), ((3,),), host="the mask")
add([np.compress], lambda f, x: f([False, True], x), ((2, 3),), host="the mask")
add([np.extract], lambda f, x: f(x > 0, x), ((2, 3),), ((5,),))
add([np.resize], lambda f, x: f(x, (3, 2)), ((5,),), ((2, 4),), ((),), ((0,),))
add([np.choose], lambda f, x, y: f(np.array([[0, 1, 1], [1, 0, 0]]), [x, y]), ((2, 3), (3,)),
    host="the choice")  # fmt: skip
add([np.choose], lambda f, x, y: f([3, -1], (x, y), mode="wrap"), ((2,), ()), host="the choice")
add(
    [np.trim_zeros],
    lambda f, x: f(np.concatenate([x[:1] * 0, x, x[:2] * 0])),
    ((3,),),
    host="where zeros are",
)
add(
    [np.trim_zeros],
    lambda f, x: f(np.concatenate([x * 0, x]), "f"),
    ((3,),),
    host="where zeros are",
)
add([np.unique], lambda f, x: f(np.concatenate([x, x[:1]])), ((4,),))
add([np.unique], lambda f, x: f(x, return_counts=True, return_index=True)[0], ((2, 3),))
add([np.setdiff1d], lambda f, x: f(x, x[1:3] * 1.0), ((5,),))
add([np.block], lambda f, x, y: f([x, y]), ((3,), (2,)), ((2, 3), (2, 1)), ((), ()))
add([np.block], lambda f, x, y: f([[x, y], [y, x]]), ((2, 3), (2, 3)), ((), ()), ((3,), (3,)))
add([np.block], lambda f, x: f([[x, np.zeros((2, 1))], [1.0, np.ones((1, 3))]]), ((2, 3),),
    host="the rest")  # fmt: skip
add([np.block], lambda f, x: f(x), ((2, 3),))
if hasattr(np, "unstack"):
    add([np.unstack], lambda f, x: f(x), ((3,),), ((2, 3),))
    add([np.unstack], lambda f, x: f(x, axis=1), ((2, 3),))

add([np.lexsort], lambda f, x, y: x[f((x, y))] * 2, ((5,), (5,)))

# Functions of the user's.
add([np.apply_along_axis], lambda f, x: f(np.sum, 0, x), ((3,),), ((2, 3),), ((2, 3, 2),))
add([np.apply_along_axis], lambda f, x: f(lambda v, k: v[::-1] * k, 1, x, 2.0), ((2, 3, 2),))
add([np.apply_along_axis], lambda f, x: f(np.outer, -1, x, np.ones(2)), ((2, 3),), host="the ones")
add([np.apply_over_axes], lambda f, x: f(np.sum, x, (0, -1)), ((2, 3, 2),))
add([np.apply_over_axes], lambda f, x: f(np.cumsum, x, 1), ((2, 3),))
_pieces = [lambda y: y * y, lambda y, k=1.0: y * k, 2.0]
add([np.piecewise], lambda f, x: f(x, [x < -1, x > 0.5], _pieces), ((7,),), ((2, 3),), ((0,),),
    host="the mask")  # fmt: skip
add([np.piecewise], lambda f, x: f(x, x > 0, _pieces[:2]), ((5,),), ((),), host="the mask")
add([np.piecewise], lambda f, x: f(x, [x < 0, x >= 0], _pieces[:2], k=3.0), ((),), host="the mask")

# Borders.
for _mode in ("maximum", "minimum", "mean", "median"):
    add([np.pad], lambda f, x, m=_mode: f(x, ((1, 0), (2, 1)), mode=m), ((3, 4),))
    add([np.pad], lambda f, x, m=_mode: f(x, 2, m, stat_length=(3, 2)), ((4,),))
add([np.pad], lambda f, x: f(x, (2, 3), "linear_ramp", end_values=(1.0, -1.0)), ((3,),), ((2, 3),))
add([np.pad], lambda f, x: f(x, {0: (0, 2)}, "linear_ramp"), ((2, 3),))

# NaN left out.
_holes = lambda x: np.where(x > 1, np.nan, x)
_of_nan = [np.nanprod, np.nanmax, np.nanmin, np.nanvar, np.nanstd, np.nanmedian]
add(_of_nan, lambda f, x: f(_holes(x)), ((5,),), ((4, 3),))
add(_of_nan, lambda f, x: f(_holes(x), axis=-1, keepdims=True), ((2, 5),))
add(_of_nan, lambda f, x: f(x, axis=0), ((4, 2),))
add([np.nanvar, np.nanstd], lambda f, x: f(_holes(x), axis=0, ddof=1), ((5, 2),))
add([np.nanvar, np.nanprod], lambda f, x: f(x), ((4,),), domains="complex")
add([np.nancumsum, np.nancumprod], lambda f, x: f(_holes(x)), ((5,),), ((2, 3),), ((),))
add([np.nancumsum, np.nancumprod], lambda f, x: f(_holes(x), axis=-1), ((2, 5),))
add([np.nanmean], lambda f, x: f(_holes(x), axis=1, keepdims=True), ((2, 5),))

# Quantiles.
for _kind, _whole in ((np.quantile, 1), (np.nanquantile, 1), (np.percentile, 100),
                      (np.nanpercentile, 100)):  # fmt: skip
    add([_kind], lambda f, x, w=_whole: f(x, 0.3 * w), ((5,),), ((2, 3),), ((),))
    add([_kind], lambda f, x, w=_whole: f(x, 0.0 * w, axis=0), ((4, 2),))
    add([_kind], lambda f, x, w=_whole: f(x, 1.0 * w, axis=(0, 2), keepdims=True), ((2, 3, 2),))
    add([_kind], lambda f, x, w=_whole: f(x, [0.1 * w, 0.77 * w], axis=-1), ((2, 5),), host="q")
    add([_kind], lambda f, x, q, w=_whole: f(x, (0.5 + 0.2 * q) * w), ((5,), ()),
        domains=("real", "unit"))  # fmt: skip
add([np.nanquantile], lambda f, x: f(_holes(x), 0.4, axis=-1), ((2, 7),))
add([np.nanquantile], lambda f, x: f(_holes(x), [[0.4, 0.1]], axis=0, keepdims=True), ((7, 2),),
    host="q")  # fmt: skip

# Statistics.
add([np.cov, np.corrcoef], lambda f, x: f(x), ((5,),), ((3, 5),))
add([np.cov, np.corrcoef], lambda f, x: f(x, rowvar=False), ((5, 2),))
add([np.cov, np.corrcoef], lambda f, x, y: f(x, y), ((5,), (5,)), ((2, 5), (5,)))
add([np.cov], lambda f, x: f(x, bias=True), ((2, 4),))
add([np.cov], lambda f, x: f(x, ddof=2), ((2, 4),))
add([np.cov], lambda f, x: f(x, fweights=[1, 2, 1, 1], aweights=[0.5, 1.5, 1, 2]), ((2, 4),),
    host="the weights")  # fmt: skip
add([np.cov], lambda f, x: f(x), ((2, 4),), domains="complex")
_places = np.array([0, 2, 2, 0])
add([np.bincount], lambda f, w: f(_places, w), ((4,),), host="the places")
add([np.bincount], lambda f, w: f(_places, weights=w, minlength=6), ((4,),), host="the places")

# Curves.
_knots = np.array([0.0, 0.5, 2.0, 2.5])
add([np.interp], lambda f, y: f(1.2, _knots, y), ((4,),), host="the knots")
add([np.interp], lambda f, x, y: f(x, _knots, y), ((7,), (4,)), ((2, 3), (4,)), ((), (4,)),
    domains=("positive", "real"), host="the knots")  # fmt: skip
add([np.interp], lambda f, x, y: f(x * 3, _knots, y, left=1.0, right=-2.0), ((7,), (4,)),
    host="the knots")  # fmt: skip
add([np.interp], lambda f, x, y: f(x * 3, _knots, y, period=2.75), ((7,), (4,)), host="the knots")
add([np.interp], lambda f, x, p, y: f(x, np.cumsum(p), y), ((5,), (4,), (4,)),
    domains=("positive", "positive", "real"))  # fmt: skip
add([np.interp], lambda f, x, y: f(x, _knots, y), ((5,), (4,)), domains=("positive", "complex"),
    host="the knots")  # fmt: skip
add([np.polyval], lambda f, p, x: f(p, x), ((4,), ()), ((3,), (2, 3)), ((1,), (2,)), ((0,), (2,)))
add([np.polyval], lambda f, x: f([1, -2.0, 3], x), ((3,),), host="the list")
add([np.polyadd, np.polysub], lambda f, p, q: f(p, q), ((3,), (3,)), ((2,), (4,)), ((4,), (2,)))
add([np.polyder], lambda f, p: f(p), ((4,),), host="the powers")
add([np.polyder], lambda f, p: f(p, 2), ((4,),), host="the powers")
add([np.polyfit], lambda f, x, y: f(np.cumsum(x), y, 2), ((5,), (5,)), ((5,), (5, 2)),
    domains=("positive", "real"))  # fmt: skip
add([np.vander], lambda f, x: f(x), ((4,),), ((1,),))
add([np.vander], lambda f, x: f(x, 3, increasing=True), ((4,),))
add([np.vander], lambda f, x: f(x, N=0), ((4,),))
add([np.unwrap], lambda f, x: f(x), ((6,),), ((2, 3),), domains="large")
add([np.unwrap], lambda f, x: f(x, axis=0, period=3.0), ((4, 2),), domains="large")
add([np.logspace], lambda f, x, y: f(x, y, 4), ((), ()), ((2,), (2,)))
add([np.logspace], lambda f, x, b: f(x, 2.0, 3, endpoint=False, base=b, axis=-1), ((2,), ()),
    domains=("real", "positive"))  # fmt: skip
add([np.geomspace], lambda f, x, y: f(x, y, 4), ((), ()), ((2,), (2,)), domains="positive")
add([np.geomspace], lambda f, x, y: f(-x, -y, 3, endpoint=False, axis=-1), ((2,), (2,)),
    domains="positive")  # fmt: skip
add([np.geomspace], lambda f, x, y: f(x, y, 4), ((), ()), domains="complex")

# Differences, scans, products.
_apart = np.array([0.0, 0.5, 2.0, 2.25, 3.0])
for _order in (1, 2):
    add([np.gradient], lambda f, x, e=_order: f(x, _apart, edge_order=e), ((5,),), host="distances")
    add([np.gradient], lambda f, x, e=_order: f(x, 0.5, _apart, edge_order=e), ((3, 5),),
        host="distances")  # fmt: skip
    add([np.gradient], lambda f, x, h, e=_order: f(x, np.cumsum(h), axis=0, edge_order=e),
        ((4, 2), (4,)), domains=("real", "positive"))  # fmt: skip
add([np.gradient], lambda f, x, h: f(x, h), ((5,), ()), domains=("real", "positive"))
add([np.ediff1d], lambda f, x: f(x), ((5,),), ((2, 3),), ((1,),))
add([np.ediff1d], lambda f, x, y: f(x, y, y[:1]), ((4,), (2,)))
if hasattr(np, "cumulative_sum"):
    add([np.cumulative_sum, np.cumulative_prod], lambda f, x: f(x), ((5,),), ((0,),))
    add([np.cumulative_sum, np.cumulative_prod], lambda f, x: f(x, axis=-1, include_initial=True),
        ((2, 3),))  # fmt: skip
add([(np.multiply, "accumulate")], lambda f, x: f(x), ((5, 2),))
add([(np.logaddexp, "reduce")], lambda f, x: f(x), ((5,),), ((3, 2),))
add([(np.logaddexp, "reduce")], lambda f, x: f(x, axis=-1, keepdims=True), ((2, 3),))
add([(np.logaddexp, "reduce")], lambda f, x: f(x, axis=None), ((2, 3),))
for _mode in ("full", "same", "valid"):
    add([np.correlate], lambda f, x, y, m=_mode: f(x, y, m), ((5,), (3,)), ((3,), (6,)))
add([np.correlate], direct, ((5,), (3,)), ((2,), (5,)), domains="complex")
_outer = [(u, "outer") for u in (np.add, np.subtract, np.multiply, np.maximum, np.minimum)]
add(_outer, direct, ((3,), (2,)), ((), (2,)), ((2, 2), (3,)))
add([(np.divide, "outer"), (np.power, "outer")], direct, ((3,), (2,)), domains="positive")
if hasattr(np, "matvec"):
    add([np.matvec], direct, ((2, 3), (3,)), ((4, 2, 3), (3,)))
    add([np.vecmat], direct, ((2,), (2, 3)), ((4, 2), (2, 3)))
    add([np.vecmat], direct, ((2,), (2, 3)), domains=("complex", "complex"))
add([np.linalg.tensorsolve], lambda f, a, b: f(a * 0.2 + np.reshape(np.eye(6), (2, 3, 6)), b),
    ((2, 3, 6), (2, 3)), host="the identity")  # fmt: skip
add([np.linalg.tensorsolve], lambda f, a, b: f(a * 0.2 + np.reshape(np.eye(6), (2, 6, 3)), b, (0,)),
    ((2, 6, 3), (6,)), host="the identity")  # fmt: skip
add([np.linalg.tensorinv], lambda f, a: f(a * 0.2 + np.reshape(np.eye(6), (2, 3, 6))), ((2, 3, 6),),
    host="the identity")  # fmt: skip
add([np.linalg.tensorinv], lambda f, a: f(a * 0.2 + np.reshape(np.eye(6), (6, 3, 2)), ind=1),
    ((6, 3, 2),), host="the identity")  # fmt: skip

# Options of reductions.
_reductions = [np.sum, np.prod, np.mean]
add(_reductions, lambda f, x: f(x, axis=-1, where=x > -1), ((2, 5),), ((5,),))
add(_reductions, lambda f, x: f(x, dtype=np.float64), ((5,),), ((2, 3),))
add([(np.add, "reduce")], lambda f, x: f(x, axis=None, dtype=np.float64), ((2, 5),))
add([np.sum, np.prod], lambda f, x: f(x, axis=0, initial=x[0, 0]), ((3, 2),))
add([np.max, np.min], lambda f, x: f(x, axis=-1, initial=0.3, where=x > -1), ((2, 5),), ((5,),))
add([np.sum, np.mean], lambda f, x: f(x, dtype=np.complex128), ((5,),))
add([np.full_like], lambda f, x: f(x, x[0, 0]), ((2, 3),))
add([np.full_like], lambda f, x: f(x, x * 2), ((),), ((2, 3),))
add([np.full_like], lambda f, x: f(x, x[0], shape=(4, 3)), ((2, 3),))

# Numbers taken apart.
add([np.divmod], direct, ((3,), (3,)), ((2, 3), ()), ((), ()), domains=("large", "away from 0"))
add([np.modf, np.frexp], direct, *((s,) for s in ONE), domains="large")
add([np.ldexp], lambda f, x: f(x, 3), *((s,) for s in ONE))
add([np.ldexp], lambda f, x: f(x, np.array([-1, 2, 0])), ((2, 3),), host="the exponents")

_masks = lambda f, x, y: f(x > 0, y > 0)
EVEN_MORE_CONSTANT = {
    **dict.fromkeys((operator.and_, operator.or_, operator.xor), _masks),
    **dict.fromkeys((np.bitwise_and, np.bitwise_or, np.bitwise_xor), _masks),
    **dict.fromkeys((operator.invert, np.invert), lambda f, x, y: f(x > 0)),
    np.fix: lambda f, x, y: f(x),
    np.argwhere: lambda f, x, y: f(x),
    np.isin: lambda f, x, y: f(x, [0.5, 1.0]),
    np.array_equiv: lambda f, x, y: f(x, y),
}
