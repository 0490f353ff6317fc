"""Samples of numpy.linalg and numpy.fft. Matrices are made well-conditioned inside the call."""

import numpy as np
from samples import add, direct


def _eye(a):
    return np.diag(np.ones_like(a[(0,) * (a.ndim - 1)]))


def square(f, a, *args):
    """On a matrix near a multiple of the identity."""
    return f(a * 0.3 + _eye(a) * 2.0, *args)


def symmetric(f, a, *args):
    """On a positive matrix with eigenvalues apart."""
    n = a.shape[-1]
    spread = np.diag(np.cumsum(np.ones_like(a[(0,) * (a.ndim - 1)])) * 1.0)
    b = a * 0.2 + spread * 1.5
    return f((b + np.swapaxes(b, -1, -2)) * 0.5, *args) if n else f(b, *args)


def hermitian(f, a, *args):
    b = a * 0.2 + np.diag(np.arange(1.0, a.shape[-1] + 1)) * 1.5
    return f((b + np.conj(np.swapaxes(b, -1, -2))) * 0.5, *args)


def tall(f, a):
    """On a matrix whose singular values are apart."""
    places = np.minimum(*np.indices(a.shape[-2:]))
    mask = np.equal(*np.indices(a.shape[-2:]))
    return f(a * 0.2 + mask * (1.0 + places))


SQUARES = ((3, 3),), ((1, 1),), ((2, 3, 3),)
add([np.linalg.inv, np.linalg.slogdet], square, *SQUARES)
add([np.linalg.det], square, ((3, 3),), ((2, 3, 3),))  # of one entry: a second derivative of zero
add([np.linalg.inv, np.linalg.det, np.linalg.slogdet], square, ((3, 3),), domains="complex")
add([np.linalg.slogdet], square, ((2, 3, 3),), domains="complex unit")
add([np.linalg.solve], square, ((3, 3), (3,)), ((3, 3), (3, 2)), ((2, 3, 3), (3, 2)))
add([np.linalg.solve], square, ((2, 3, 3), (3,)), ((3, 3), (2, 3, 2)))
add([np.linalg.solve], square, ((3, 3), (3,)), domains=("complex", "real"))
for _n in (-2, 0, 1, 3, 5):
    add([np.linalg.matrix_power], lambda f, a, n=_n: square(f, a, n), ((3, 3),))
add([np.linalg.multi_dot], lambda f, a, b, c: f([a, b, c]), ((2, 3), (3, 2), (2, 4)))
add([np.linalg.matrix_transpose, np.linalg.trace], direct, ((2, 3, 3),))
add([np.linalg.outer], direct, ((2,), (3,)))
add([np.linalg.vecdot, np.vecdot], direct, ((2, 3), (2, 3)))
add([np.linalg.matmul], direct, ((2, 3), (3, 2)))
add([np.linalg.tensordot], direct, ((2, 3, 2), (3, 2, 2)))

_of_symmetric = [np.linalg.cholesky, np.linalg.eigh, np.linalg.eigvalsh]
add(_of_symmetric, symmetric, ((3, 3),), ((2, 3, 3),))
add([np.linalg.cholesky], lambda f, a: symmetric(lambda m: f(m, upper=True), a), ((3, 3),))
add([np.linalg.eigh, np.linalg.eigvalsh], lambda f, a: symmetric(f, a, "U"), ((3, 3),))
add([np.linalg.cholesky, np.linalg.eigvalsh], hermitian, ((3, 3),),
    domains="complex unit", host="the identity")  # fmt: skip
add([np.linalg.eigh], lambda f, a: np.absolute(hermitian(f, a)[1]), ((3, 3),),
    domains="complex unit", host="the identity")  # fmt: skip
_apart = np.diag([1.0, 2.5, 4.5])
_turning = np.array([[1.0, 2.0, 0], [-2, 1, 0], [0, 0, 3]])
for _base in (_apart, _turning):
    add([np.linalg.eig, np.linalg.eigvals], lambda f, a, b=_base: f(a * 0.1 + b), ((3, 3),),
        host="the matrix")  # fmt: skip
add([np.linalg.svd], lambda f, a: tall(lambda m: f(m, False), a), ((4, 2),), ((2, 3),),
    host="the matrix")  # fmt: skip
add([np.linalg.svd], tall, ((3, 3),), host="the matrix")
add([np.linalg.svd], lambda f, a: tall(lambda m: f(m, compute_uv=False), a), ((3, 2),),
    host="the matrix")  # fmt: skip
add([np.linalg.svdvals, np.linalg.pinv, np.linalg.cond], tall, ((3, 3),), ((4, 2),),
    host="the matrix")  # fmt: skip
add([np.linalg.pinv], tall, ((2, 4),), host="the matrix")
add([np.linalg.svdvals], tall, ((3, 2),), domains="complex unit", host="the matrix")
add([np.linalg.cond], lambda f, a: square(f, a, 1), ((3, 3),))
add([np.linalg.qr], tall, ((3, 3),), ((4, 2),), host="the matrix")
add([np.linalg.qr], tall, ((3, 3),), ((4, 2),), domains="complex unit", host="the matrix")
add([np.linalg.lstsq], lambda f, a, b: tall(lambda m: f(m, b)[0], a), ((4, 2), (4,)),
    ((4, 2), (4, 2)), ((2, 3), (2,)), host="the matrix")  # fmt: skip
add([np.linalg.lstsq], lambda f, a, b: tall(lambda m: f(m, b)[1::2], a), ((4, 2), (4,)),
    host="the matrix")  # fmt: skip

add([np.linalg.norm], direct, ((3,),), ((2, 3),), domains="away from 0")
for _ord in (1, 2, 3, 0.5, np.inf, -np.inf):
    add([np.linalg.norm], lambda f, x, p=_ord: f(x, p), ((3,),), domains="away from 0")
    add([np.linalg.norm], lambda f, x, p=_ord: f(x, p, axis=-1, keepdims=True), ((2, 3),),
        domains="away from 0")  # fmt: skip
for _ord in ("fro", "nuc", 1, 2, -1, -2, np.inf, -np.inf):
    add([np.linalg.norm], lambda f, x, p=_ord: f(x, p), ((3, 2),), domains="away from 0")
add([np.linalg.norm], lambda f, x: f(x, "fro", (0, 2), True), ((2, 2, 3),), domains="away from 0")
add([np.linalg.norm], lambda f, x: f(x, axis=0), ((3, 2),), domains="complex")
add([np.linalg.vector_norm, np.linalg.matrix_norm], direct, ((2, 3),), domains="away from 0")
add([np.linalg.vector_norm], lambda f, x: f(x, axis=0, ord=1), ((2, 3),), domains="away from 0")

_transforms = [np.fft.fft, np.fft.ifft, np.fft.irfft, np.fft.hfft]
for _norm in ("backward", "ortho", "forward"):
    for _n in (None, 3, 7, 6):
        call = lambda f, x, n=_n, m=_norm: f(x, n, norm=m)
        add(_transforms, call, ((5,),), domains="complex")
        add([np.fft.rfft, np.fft.ihfft], call, ((5,),))
add(_transforms, lambda f, x: f(x, axis=0), ((4, 2),), domains="complex")
add([np.fft.fft, np.fft.ifft], direct, ((2, 4),))
add([np.fft.rfft], lambda f, x: f(x, axis=0), ((4, 2),))
_many = [np.fft.fftn, np.fft.ifftn, np.fft.fft2, np.fft.ifft2, np.fft.irfftn, np.fft.irfft2]
add(_many, direct, ((2, 3),), ((2, 2, 3),), domains="complex")
add(_many, lambda f, x: f(x, (4, 2), (0, 1), "ortho"), ((2, 3),), domains="complex")
add([np.fft.rfftn, np.fft.rfft2], direct, ((2, 3),), ((2, 2, 4),))
add([np.fft.rfftn], lambda f, x: f(x, (4, 2), axes=(0, 1)), ((2, 3),))
add([np.fft.fftshift, np.fft.ifftshift], direct, ((5,),), ((2, 3),))
add([np.fft.fftshift, np.fft.ifftshift], lambda f, x: f(x, axes=1), ((2, 3),))
LINALG_CONSTANT = {np.linalg.matrix_rank: lambda f, x, y: f(np.stack([x, y]))}
