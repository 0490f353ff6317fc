"""The table of samples: how each function with a rule is called in the tests over the registry."""

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
from strategies import lay_out

# Domains, from (-1, 1): wide enough to reach every branch of a rule, away from kinks.
DOMAINS = {
    "real": lambda u: 1.5 * u,
    "unit": lambda u: 0.8 * u,
    "positive": lambda u: 1.25 + u,
    "away from 0": lambda u: np.where(u < 0, u - 0.3, u + 0.3),
    "large": lambda u: 7 * u,
    "complex": lambda u: 2.5 + 1.5 * u,  # to the right of branch cuts
    "complex unit": lambda u: 0.6 * u + 0.1j,
}


@dataclass(frozen=True, eq=False)
class Sample:
    """One way to call a function: on arrays of these shapes and domains, through `call`."""

    key: Any
    call: Any
    shapes: tuple
    domains: tuple
    number: int
    host: str  # what in the call is NumPy's by nature; "" if it runs on any arrays

    def __str__(self):
        name = f".{self.key}" if isinstance(self.key, str) else getattr(self.key, "__name__", "")
        name = name or f"{self.key[0].__name__}.{self.key[1]}"
        module = "operator." if self.key in vars(operator).values() else ""
        return f"{module}{name}-{self.number}"

    def f(self, *arrays):
        return self.call(_callable(self.key), *arrays)

    def arrays(self, dtype=np.float64, layout="C"):
        rng = np.random.default_rng(self.number)
        arrays = []
        for shape, domain in zip(self.shapes, self.domains, strict=True):
            u, kind = rng.uniform(-1, 1, shape), dtype
            if domain.startswith("complex"):
                u, kind = u + 1j * rng.uniform(-1, 1, shape), np.result_type(dtype, np.complex64)
            arrays.append(lay_out(np.asarray(DOMAINS[domain](u), kind), layout))
        return tuple(arrays)

    @property
    def is_real(self):
        return not any(d.startswith("complex") for d in self.domains)


def _callable(key):
    if isinstance(key, tuple):
        return getattr(*key)
    return (lambda x, *a, **k: getattr(x, key)(*a, **k)) if isinstance(key, str) else key


ONE = ((), (3,), (2, 3), (0,), (2, 0, 3))
TWO = (
    ((), ()),
    ((3,), (3,)),
    ((2, 3), ()),
    ((), (2, 3)),
    ((2, 3), (3,)),
    ((2, 1), (1, 3)),
    ((2, 1, 3), (4, 1)),
    ((0, 3), (1, 3)),
)
samples = []


def add(keys, call, *shapes, domains="real", host=""):
    """Sample each key on each combination of shapes: a tuple of shapes, one per argument."""
    for key in keys:
        for some in shapes:
            number = sum(s.key is key or s.key == key for s in samples)
            of_each = (domains,) * len(some) if isinstance(domains, str) else domains
            samples.append(Sample(key, call, some, of_each, number, host))


def direct(function, *args):
    return function(*args)


def unary(*keys, domain="real"):
    add(keys, direct, *((s,) for s in ONE), domains=domain)


def binary(*keys, domains="real"):
    add(keys, direct, *TWO, domains=domains)


unary(operator.neg, operator.pos, operator.abs, np.negative, np.positive, np.absolute, np.fabs)
unary(np.exp, np.exp2, np.expm1, np.sin, np.cos, np.tan, np.arctan, np.sinh, np.cosh, np.tanh)
unary(np.log, np.log2, np.log10, np.log1p, np.sqrt, domain="positive")
unary(np.square)
unary(np.reciprocal, domain="away from 0")
unary(np.arcsin, np.arccos, domain="unit")

binary(operator.add, np.add, operator.sub, np.subtract, operator.mul, np.multiply)
binary(np.maximum, np.minimum, np.logaddexp)
binary(operator.truediv, np.divide, np.arctan2, np.hypot, domains=("real", "away from 0"))
binary(operator.pow, np.power, domains=("positive", "real"))
binary(operator.mod, np.mod, domains=("large", "away from 0"))
_powers = (operator.pow, np.power)
for _n in (-1, 0, 1, 2, 3, 2.0, 0.5):
    _domain = "positive" if _n == 0.5 else "away from 0"
    add(_powers, lambda f, x, n=_n: f(x, n), ((),), ((2, 3),), domains=_domain)
add(_powers, lambda f, y: f(2, y), ((),), ((3,),))
_exponents = np.array([0.0, 1.0, 2.0])
add(_powers, lambda f, x: f(x, _exponents), ((2, 3),), domains="away from 0", host="the exponents")
add([np.maximum, np.minimum], lambda f, x: f(x, 0.0), ((3,),), ((),))
add([np.multiply, np.divide], lambda f, x: f(x, [1.0, 2.0, 3.0]), ((2, 3),), host="the list")

# Complex numbers: what is holomorphic, what is not, and mixtures with real ones.
_complex_shapes = [((),), ((2, 3),), ((0,),)]
_holomorphic = [np.exp, np.sin, np.cos, np.tan, np.sinh, np.cosh, np.tanh, np.log, np.sqrt]
_holomorphic += [np.square, np.reciprocal, np.expm1, np.log1p, np.log2, np.log10, np.exp2]
_holomorphic += [np.arctan, np.negative, operator.neg, operator.pos, np.positive]
add(_holomorphic, direct, *_complex_shapes, domains="complex")
add([np.arcsin, np.arccos], direct, ((3,),), domains="complex unit")
add([operator.abs, np.absolute, np.sign], direct, *_complex_shapes, domains="complex")
for _kinds in (("complex", "complex"), ("complex", "positive"), ("positive", "complex")):
    _arithmetic = [operator.add, np.subtract, operator.mul, np.multiply, operator.truediv]
    _arithmetic += [np.divide, operator.pow, np.power]
    add(_arithmetic, direct, ((2, 3), (3,)), ((), (3,)), domains=_kinds)
    _shapes = [((3,), (3,)), ((2, 3), (3, 2))]
    add([operator.matmul, np.dot], direct, *_shapes, domains=_kinds)
    add([np.vdot], direct, ((2, 3), (3, 2)), domains=_kinds)
    add([np.where], lambda f, x, y: f(np.real(x) > 2.5, x, y), ((3,), (2, 3)), domains=_kinds)
    add([np.concatenate], lambda f, x, y: f([x, y]), ((3,), (2,)), domains=_kinds)
add(_powers, lambda f, x: f(x, 2), ((2, 3),), domains="complex")
add([np.sum, np.mean, np.var], lambda f, x: f(x, axis=0), ((2, 3),), domains="complex")
add([np.std], lambda f, x: f(x), ((2, 3),), domains="complex")
for _domain in ("complex", "positive"):
    add([np.real, np.imag, np.conjugate], direct, *_complex_shapes, domains=_domain)
    add([np.angle, np.real_if_close], direct, ((2, 3),), ((),), domains=_domain)
add([np.sign], direct, ((2, 3),), ((0,),))
add([np.angle], lambda f, x: f(x, deg=True), ((3,),), domains="complex")

add([np.where], lambda f, c, x, y: f(c > 0, x, y), ((3,), (3,), (3,)), ((3,), (2, 3), ()))
add([np.where], lambda f, c, x, y: f(c > 0, x, y), ((3,), (2, 1), (1, 3)), ((), (), ()))
add([np.where], lambda f, x: f(x > 0, x, 0.0), ((2, 3),), ((),))
add([np.where], lambda f, x: f(x > 0, 2.0, x), ((2, 3),), ((),), ((0,),))
add([np.clip], lambda f, x: f(x, -0.5, 0.5), *((s,) for s in ONE))
add([np.clip], lambda f, x: f(x, min=-0.5), ((2, 3),))
add([np.clip], lambda f, x: f(x, None, 0.5), ((2, 3),))
add([np.clip], direct, ((2, 3), (3,), (2, 1)), domains=("real", "unit", "positive"))

for _axes, _shapes in (
    ({}, [(s,) for s in ((), (3,), (2, 3), (2, 4, 3))]),
    ({"axis": 0}, [((3,),), ((2, 3),)]),
    ({"axis": -1, "keepdims": True}, [((2, 3),), ((2, 1),), ((0, 3),)]),
    ({"axis": (0, -1)}, [((2, 4, 3),)]),
    ({"axis": None, "keepdims": True}, [((2, 3),)]),
    ({"axis": ()}, [((2, 3),)]),
):
    _reductions = [np.sum, np.mean, np.max, np.min, np.amax, np.amin]
    _reductions += [(np.add, "reduce"), (np.maximum, "reduce"), (np.minimum, "reduce")]
    add(_reductions, lambda f, x, k=_axes: f(x, **k), *_shapes)
    add([np.var], lambda f, x, k=_axes: f(x, **k), *_shapes)
add([np.sum, (np.add, "reduce")], lambda f, x: f(x, axis=0), ((0, 3),), ((0,),))
add([np.var, np.std], lambda f, x: f(x, axis=-1, ddof=1), ((2, 3),), ((4,),))
add([np.std], lambda f, x: f(x), ((3,),), ((2, 3),))
add([np.std], lambda f, x: f(x, axis=0, keepdims=True), ((3, 2),))

_products = [operator.matmul, np.matmul]
add(_products, direct, ((2, 3), (3, 4)), ((3,), (3,)), ((3,), (3, 4)), ((2, 3), (3,)))
add(_products, direct, ((5, 2, 3), (5, 3, 4)), ((2, 3), (5, 3, 4)), ((5, 1, 2, 3), (4, 3, 2)))
add(_products, direct, ((3,), (5, 3, 4)), ((5, 2, 3), (3,)), ((0, 3), (3, 2)), ((2, 0), (0, 3)))
add([np.dot], direct, ((2, 3), (3, 4)), ((3,), (3,)), ((3,), (3, 4)), ((5, 2, 3), (3,)))
add([np.dot], direct, ((5, 2, 3), (3, 4)), ((), ()), ((), (2, 3)), ((2, 3), ()), ((0,), (0,)))
add([np.vdot], direct, ((3,), (3,)), ((2, 3), (3, 2)))
add([np.outer], direct, ((3,), (2,)), ((2, 2), (3,)), ((0,), (2,)), ((), (2,)))

add([np.reshape], lambda f, x: f(x, (3, -1)), ((2, 3),), ((6,),), ((3, 0),))
add([np.reshape], lambda f, x: f(x, -1), ((2, 3),), ((),))
unary(np.ravel, np.squeeze, np.transpose, np.permute_dims, np.atleast_1d, np.copy)
add([np.ravel], lambda f, x: f(x, "C"), ((2, 3),))
add([np.squeeze], lambda f, x: f(x, axis=1), ((2, 1, 3, 1),))
add([np.squeeze], direct, ((1, 2, 1),), ((1, 1),))
add([np.expand_dims], lambda f, x: f(x, 0), ((),), ((2, 3),))
add([np.expand_dims], lambda f, x: f(x, (0, -1)), ((2, 3),))
add([np.transpose, np.permute_dims], lambda f, x: f(x, (2, 0, 1)), ((2, 4, 3),))
add([np.transpose], lambda f, x: f(x, np.array([-1, 0, 1])), ((2, 4, 3),))
add([np.matrix_transpose], direct, ((2, 3),), ((2, 4, 3),), ((0, 3),))
add([np.swapaxes], lambda f, x: f(x, 0, -1), ((2, 4, 3),), ((2, 3),))
add([np.moveaxis], lambda f, x: f(x, 0, -1), ((2, 4, 3),), ((3,),))
add([np.moveaxis], lambda f, x: f(x, (0, 1), (-1, 0)), ((2, 4, 3),))
add([np.moveaxis], lambda f, x: f(x, source=-1, destination=0), ((2, 4, 3),))
add([np.atleast_1d], direct, ((), (2, 3)))
add([np.broadcast_to], lambda f, x: f(x, (2, 3)), ((),), ((3,),), ((2, 1),), ((2, 3),))
add([np.broadcast_to], lambda f, x: f(x, 3), ((1,),))
add([np.flip], lambda f, x: f(x), ((),), ((3,),), ((2, 3),), ((0,),))
add([np.flip], lambda f, x: f(x, axis=(0, 2)), ((2, 4, 3),))
add([np.copy], lambda f, x: f(x, "F"), ((2, 3),))
add(["copy"], lambda f, x: f(x), *((s,) for s in ONE))
add(["copy"], lambda f, x: f(x, "F"), ((2, 3),))
if hasattr(np, "astype"):
    add([np.astype], lambda f, x: f(x, np.float64), ((2, 3),), host="NumPy's own astype")
add(["astype"], lambda f, x: f(x, np.float64), ((2, 3),), ((),), ((0,),))
add(["astype"], lambda f, x: f(x, np.float32, copy=False), ((2, 3),))
add([np.concatenate], lambda f, x, y: f([x, y]), ((2,), (3,)), ((2, 3), (1, 3)), ((0,), (2,)))
add([np.concatenate], lambda f, x, y: f((x, y), axis=-1), ((2, 3), (2, 1)))
add([np.concatenate], lambda f, x, y: f((x, y), axis=None), ((2, 3), (2,)))
_rest = [np.ones(2), [3.0]]
add([np.concatenate], lambda f, x: f([x, *_rest, x]), ((2,),), host="the rest")
add([np.stack], lambda f, x, y: f([x, y]), ((3,), (3,)), ((), ()))
add([np.stack], lambda f, x, y: f([x, y], axis=-1), ((2, 3), (2, 3)))
add([np.stack], lambda f, x: f([x, 2.0]), ((),), host="the number")
add([np.hstack, np.vstack], lambda f, x, y: f([x, y]), ((2, 3), (2, 3)), ((3,), (3,)), ((), ()))
add([np.split], lambda f, x: f(x, 2), ((4,),), ((4, 3),))
add([np.split], lambda f, x: f(x, [1, 3, 3, 7], axis=-1), ((2, 4),))

_i = np.array([[0, 2], [2, 2]])
for _index in (
    1,
    -1,
    slice(None, None, -2),
    slice(3, 3),
    ...,
    None,
    [0, 2, 2],
    [],
    _i,
    np.int64(1),
):
    add([operator.getitem], lambda f, x, i=_index: f(x, i), ((3,),), ((3, 2),))
for _index in (
    (1, 2), (slice(None), 0), (..., None, 1), (slice(None), [0, 0]), ([0, 1], [2, 2]), (_i % 2, _i),
    (0, _i), (slice(1), None, _i), (np.array([True, False]),), np.array([[1, 0, 1], [0, 0, 1]]) > 0,
    (np.array([0, 1]), slice(None, None, -1)), (True, 0), (np.zeros((0,), int), 1),
):  # fmt: skip
    add([operator.getitem], lambda f, x, i=_index: f(x, i), ((2, 3),))
add([operator.getitem], lambda f, x: f(x, ()), ((),), ((2, 3),))
for _index in (1, [0, 2, 2], (0, 1), _i, [], np.int64(-1)):
    add([np.take], lambda f, x, i=_index: f(x, i), ((3,),), ((2, 3),))
    add([np.take], lambda f, x, i=_index: f(x, i, axis=-1), ((2, 3),))
add([np.take], lambda f, x: f(x, [1, 1], axis=0), ((2, 3),))
for _axis in (1, -2, None):
    add(
        [np.take_along_axis],
        lambda f, x, axis=_axis: f(x, np.argsort(x, axis=axis), axis=axis),
        ((2, 3),),
    )

# Functions whose answers have no derivative, each on arguments of its own.
_pairs = [lambda f, x, y: f(x, y)]
CONSTANT = {
    **dict.fromkeys(
        (
            *(operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne),
            *(np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal),
            *(np.logical_and, np.logical_or, np.logical_xor, np.isclose, np.allclose),
            *(np.array_equal, operator.floordiv, np.floor_divide),
        ),
        lambda f, x, y: f(x, y),
    ),
    **dict.fromkeys(
        (
            *(np.logical_not, np.floor, np.ceil, np.rint, np.trunc, np.round, np.around),
            *(np.signbit, np.isnan, np.isinf, np.isfinite, np.argmax, np.argmin, np.any, np.all),
            *(np.count_nonzero, np.zeros_like, np.ones_like, np.argsort, np.nonzero),
        ),
        lambda f, x, y: f(x),
    ),
    np.empty_like: lambda f, x, y: f(x).shape,
    np.searchsorted: lambda f, x, y: f(x, y),
}
FACTS = {
    **dict.fromkeys((np.shape, np.ndim, np.size, np.result_type), direct),
    **dict.fromkeys((np.iscomplexobj, np.isrealobj, np.min_scalar_type, np.common_type), direct),
    np.can_cast: lambda f, x: f(x.dtype, np.int8),
    np.einsum_path: lambda f, x: f("ij,kj", x, x),
    **dict.fromkeys((np.may_share_memory, np.shares_memory), lambda f, x: f(x, x)),
}
