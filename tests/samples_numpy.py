"""Samples of NumPy's functions beyond the first table: pieces, scans, order, contractions."""

import numpy as np
from samples import ONE, add, binary, direct, unary

unary(np.arcsinh, np.sinc)
unary(np.arctanh, domain="unit")
unary(np.cbrt, domain="positive")
unary(np.deg2rad, np.radians, np.rad2deg, np.degrees)
add([np.arccosh], lambda f, x: f(1.5 + x), ((3,),), ((),), domains="positive")
add([np.sinc], lambda f, x: f(x * 1e-3), ((3,),), ((),))
binary(np.fmax, np.fmin, np.logaddexp2)
binary(np.float_power, domains=("positive", "real"))
binary(np.fmod, domains=("large", "away from 0"))
binary(np.copysign, domains=("away from 0", "away from 0"))
add([np.nan_to_num], lambda f, x: f(x), ((2, 3),), ((),))
add([np.arcsinh, np.arctanh], direct, ((3,),), domains="complex unit")

add([np.array_split], lambda f, x: f(x, 3), ((7,),), ((5, 2),))
add([np.array_split], lambda f, x: f(x, [1, 3], axis=-1), ((2, 4),))
add([np.vsplit, np.hsplit], lambda f, x: f(x, 2), ((4, 2),), ((2, 4, 3),))
add([np.hsplit], lambda f, x: f(x, 2), ((4,),))
add([np.dsplit], lambda f, x: f(x, [1]), ((2, 3, 2),))
unary(np.atleast_2d, np.atleast_3d)
add([np.atleast_2d, np.atleast_3d], direct, ((), (3,)))
add([np.dstack, np.column_stack], lambda f, x, y: f([x, y]), ((2, 3), (2, 3)), ((3,), (3,)))
add([np.append], lambda f, x, y: f(x, y), ((3,), (2,)), ((2, 3), ()))
add([np.append], lambda f, x, y: f(x, y, axis=0), ((2, 3), (1, 3)))
add([np.select], lambda f, x, y: f([x > 0.5, y > 0], [x, y * 2]), ((3,), (3,)), ((2, 3), (2, 3)))
add([np.broadcast_arrays], direct, ((2, 3), (3,)), ((), (2,)))
add([np.fliplr], direct, ((2, 3),), ((2, 3, 2),))
add([np.flipud], direct, ((2, 3),), ((3,),))
for _k in (0, 1, 2, 3):
    add([np.rot90], lambda f, x, k=_k: f(x, k), ((2, 3),))
add([np.rot90], lambda f, x: f(x, axes=(1, 2)), ((2, 3, 4),))
add([np.roll], lambda f, x: f(x, 2), ((5,),), ((2, 3),), ((),))
add([np.roll], lambda f, x: f(x, (1, -1), axis=(0, 1)), ((2, 3),))
add([np.roll], lambda f, x: f(x, -1, axis=-1), ((2, 3),), ((2, 0),))
add([np.rollaxis], lambda f, x: f(x, 2), ((2, 4, 3),))
add([np.rollaxis], lambda f, x: f(x, 0, 2), ((2, 4, 3),))
add([np.repeat], lambda f, x: f(x, 2), ((3,),), ((2, 3),), ((),))
add([np.repeat], lambda f, x: f(x, [2, 0, 1], axis=-1), ((2, 3),))
add([np.repeat], lambda f, x: f(x, 3, axis=0), ((2, 3),), ((0, 3),))
add([np.tile], lambda f, x: f(x, 2), ((3,),), ((2, 3),), ((),))
add([np.tile], lambda f, x: f(x, (2, 1, 3)), ((3,),), ((2, 3),))
add([np.diagonal], lambda f, x: f(x), ((3, 3),), ((2, 4),), ((0, 3),))
add([np.diagonal], lambda f, x: f(x, 1, 0, 2), ((3, 2, 3),))
add([np.diagonal], lambda f, x: f(x, -1), ((3, 4),))
add([np.linalg.diagonal], lambda f, x: f(x), ((3, 3),))
add([np.diag, np.diagflat], lambda f, x: f(x), ((3,),), ((0,),))
add([np.diag], lambda f, x: f(x, k=1), ((3,),), ((3, 4),))
add([np.tril, np.triu], lambda f, x: f(x), ((3, 3),), ((2, 4),), ((2, 3, 2),))
add([np.tril, np.triu], lambda f, x: f(x, k=-1), ((3, 3),))
add([np.trace], lambda f, x: f(x), ((3, 3),), ((2, 4),))
add([np.trace], lambda f, x: f(x, 1, 1, 2), ((2, 3, 3),))
for _mode in ("constant", "edge", "reflect", "symmetric", "wrap"):
    add([np.pad], lambda f, x, m=_mode: f(x, ((1, 0), (2, 1)), mode=m), ((3, 4),))
    add([np.pad], lambda f, x, m=_mode: f(x, 2, m), ((3,),))
add([np.pad], lambda f, x: f(x, (1, 2), constant_values=(3.0, 4.0)), ((3,),), ((0, 2),))
add([np.linspace], lambda f, x, y: f(x, y, 5), ((), ()), ((3,), (3,)))
add([np.linspace], lambda f, x, y: f(x, y, 4, endpoint=False, axis=-1), ((2,), ()))
add([np.meshgrid], lambda f, x, y: f(x, y), ((2,), (3,)))
add([np.meshgrid], lambda f, x, y: f(x, y, indexing="ij", sparse=True), ((2,), (3,)))

_scans = [np.cumsum, np.cumprod]
add(_scans, lambda f, x: f(x), *((s,) for s in ONE))
add(_scans, lambda f, x: f(x, axis=-1), ((2, 5),), ((2, 0),), ((7,),))
add(_scans, lambda f, x: f(x, axis=0), ((5, 2),))
add([np.cumprod], lambda f, x: f(x * np.array([1.0, 0, 1, 0, 1])), ((5,),), host="the zeros")
add([(np.add, "accumulate")], lambda f, x: f(x), ((5, 2),))
add([np.prod], lambda f, x: f(x), ((),), ((3,),), ((2, 3),), ((0,),))
add([np.prod], lambda f, x: f(x * np.array([1.0, 0, 1])), ((3,),), host="the zeros")
add([np.prod], lambda f, x: f(x, axis=0), ((2, 3),))
add([np.prod], lambda f, x: f(x, axis=(0, -1), keepdims=True), ((2, 4, 3),))
add([(np.multiply, "reduce")], lambda f, x: f(x), ((2, 3),))
add([np.diff], lambda f, x: f(x), ((5,),), ((2, 3),))
add([np.diff], lambda f, x: f(x, 2, axis=0), ((4, 2),))
add([np.diff], lambda f, x, y: f(x, prepend=y, append=0.5), ((3,), ()), host="the number")
add([np.gradient], lambda f, x: f(x), ((5,),), ((3, 4),))
add([np.gradient], lambda f, x: f(x, 0.5, axis=-1, edge_order=2), ((5,),), ((2, 4),))
add([np.gradient], lambda f, x: f(x, 0.5, 2.0), ((3, 4),))
add([np.trapezoid], lambda f, x: f(x), ((5,),), ((2, 4),))
add([np.trapezoid], lambda f, y, x: f(y, x, axis=0), ((4, 2), (4,)), ((4, 2), (4, 2)))

add([np.sort], lambda f, x: f(x), ((5,),), ((2, 4),), ((0,),))
add([np.sort], lambda f, x: f(x, axis=0), ((4, 2),))
add([np.sort], lambda f, x: f(x, axis=None), ((2, 3),))
add([np.partition], lambda f, x: f(x, 2), ((7,),), ((2, 5),))
add([np.partition], lambda f, x: f(x, [1, 3], axis=0), ((5, 2),))
add([np.median], lambda f, x: f(x), ((5,),), ((2, 3),))
add([np.median], lambda f, x: f(x, axis=(0, 2), keepdims=True), ((2, 3, 2),))
add([np.median], lambda f, x: f(x, axis=0), ((4, 2),))
add([np.ptp], lambda f, x: f(x, axis=0), ((4, 2),), ((3,),))
add([np.nansum], lambda f, x: f(np.where(x > 1, np.nan, x), axis=0), ((4, 2),))
add([np.nanmean], lambda f, x: f(x), ((4, 2),))
add([np.average], lambda f, x: f(x, axis=0), ((4, 2),))
add([np.average], lambda f, x, w: f(x, 0, w), ((4, 2), (4,)), ((4, 2), (4, 2)),
    domains=("real", "positive"))  # fmt: skip

add([np.tensordot], lambda f, x, y: f(x, y), ((2, 3, 4), (3, 4, 2)))
add([np.tensordot], lambda f, x, y: f(x, y, 1), ((2, 3), (3, 4)), ((3,), (3,)))
add([np.tensordot], lambda f, x, y: f(x, y, 0), ((2,), (3,)))
add([np.tensordot], lambda f, x, y: f(x, y, ((0, 2), (1, -1))), ((2, 3, 4), (5, 2, 4)))
add([np.inner], direct, ((3,), (3,)), ((2, 3), (4, 3)), ((), (3,)), ((2, 3), (3,)))
add([np.dot], direct, ((3,), (2, 3, 4)), ((2, 3), (5, 3, 4)))
add([np.kron], direct, ((2, 3), (3, 2)), ((2,), (2, 3)), ((), (3,)))
add([np.cross], direct, ((3,), (3,)), ((2, 3), (3,)))
add([np.linalg.cross], direct, ((2, 3), (2, 3)))
add([np.cross], lambda f, x, y: f(x, y, axis=0), ((3, 2), (3, 2)))
for _mode in ("full", "same", "valid"):
    add([np.convolve], lambda f, x, y, m=_mode: f(x, y, m), ((5,), (3,)), ((2,), (6,)))
for _subscripts, _shapes in (
    ("ij,jk->ik", ((2, 3), (3, 4))), ("ij,jk", ((2, 3), (3, 4))), ("ij->ji", ((2, 3),)),
    ("ii", ((3, 3),)), ("ii->i", ((3, 3),)), ("iij,j->i", ((2, 2, 3), (3,))),
    ("i,j->", ((2,), (3,))), ("ij->", ((2, 3),)), ("ij,ij->j", ((2, 3), (2, 3))),
    ("...ij,...jk->...ik", ((5, 2, 3), (3, 4))), ("i...,i...", ((2, 3), (2, 3))),
    ("...i->...", ((2, 4, 3),)), ("ij,jk,kl->il", ((2, 3), (3, 2), (2, 4))),
    ("ij,kj->ik", ((1, 3), (2, 3))), ("ij,ij->ij", ((1, 3), (2, 3))), ("i,->i", ((3,), ())),
    ("ij,jk->k", ((0, 3), (3, 2))), ("ba,b", ((2, 3), (2,))), ("i,i,i->i", ((3,), (3,), (3,))),
):  # fmt: skip
    add([np.einsum], lambda f, *xs, s=_subscripts: f(s, *xs), _shapes)
add([np.einsum], lambda f, x, y: f(x, [0, 1], y, [1, 2], [0, 2]), ((2, 3), (3, 4)))
add([np.einsum], lambda f, x, y: f(x, [..., 1], y, [1]), ((2, 3), (3,)))
add([np.einsum], lambda f, x, y, z: f("ij,jk,kl->il", x, y, z, optimize=True),
    ((2, 3), (3, 2), (2, 4)))  # fmt: skip
_both = [("complex", "complex"), ("complex", "real")]
for _kinds in _both:
    add([np.einsum], lambda f, x, y: f("ij,jk->ik", x, y), ((2, 3), (3, 2)), domains=_kinds)
    add([np.tensordot, np.kron], lambda f, x, y: f(x, y), ((2, 3), (2, 3)), domains=_kinds)
    add([np.convolve], direct, ((4,), (3,)), domains=_kinds)
add([np.cumsum, np.cumprod, np.prod], lambda f, x: f(x), ((4,),), domains="complex")

MORE_CONSTANT = {
    **dict.fromkeys(
        (np.isneginf, np.isposinf, np.isreal, np.iscomplex, np.flatnonzero),
        lambda f, x, y: f(x),
    ),
    **dict.fromkeys((np.nanargmax, np.nanargmin), lambda f, x, y: f(x)),
    np.heaviside: lambda f, x, y: f(x, y),
    np.argpartition: lambda f, x, y: f(x, 1),
    np.digitize: lambda f, x, y: f(x, np.array([0.0, 1.0])),
}
