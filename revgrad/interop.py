"""Arrays from and to elsewhere: a GPU, PyTorch, JAX, whatever speaks DLPack; without copies.

params = rg.interop.on_gpu(params)          # and train as ever
trained = rg.interop.to_torch(rg.train(...))
"""

import numpy as np
import optree

from revgrad._ext import homes

CPU = 1  # DLPack's number of it
NEEDED = (
    "CuPy is not installed; pip install 'revgrad[cuda12]' or 'revgrad[cuda13]', as nvidia-smi "
    "says, or keep NumPy arrays"
)


def on_gpu(tree):
    """The tree with its arrays on the current GPU, as CuPy arrays; other leaves stay.

    Raises: RuntimeError where there is no GPU or no CuPy, with what to do.
    """
    cupy = _cupy()
    return optree.tree_map(lambda x: cupy.asarray(x) if _is_array(x) else x, tree)


def on_cpu(tree):
    """The tree with its CuPy arrays as NumPy arrays; other leaves stay."""
    return optree.tree_map(homes.home, tree)


def from_dlpack(tree):
    """The tree with PyTorch's, JAX's and other arrays as NumPy or CuPy arrays, where they are.

    They share memory: what changes one changes the other, and arrays of JAX come read-only. A
    PyTorch tensor that requires a gradient is taken without its history.
    Raises: TypeError for a leaf on another device than a CPU or an NVIDIA GPU; RuntimeError for one
    on a GPU without CuPy.
    """
    return optree.tree_map(_taken, tree)


def to_torch(tree):
    """The tree with NumPy and CuPy arrays as PyTorch tensors; a read-only array is copied."""
    import torch

    return optree.tree_map(lambda x: torch.from_dlpack(_writable(x)) if _is_array(x) else x, tree)


def to_jax(tree):
    """The tree with NumPy and CuPy arrays as JAX arrays.

    float64 needs jax_enable_x64. Do not change the NumPy array afterwards: JAX counts on it.
    """
    import jax

    return optree.tree_map(
        lambda x: jax.dlpack.from_dlpack(_writable(x)) if _is_array(x) else x, tree
    )


def _cupy():
    try:
        cupy = homes.module("cupy")
    except ImportError as error:
        raise RuntimeError(f"{NEEDED}.") from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CUDA's errors are of CuPy's own kinds
        raise RuntimeError(f"CuPy sees no GPU ({error}); keep NumPy arrays.") from error
    if not count:
        raise RuntimeError("CuPy sees no GPU; keep NumPy arrays.")
    return cupy


def _is_array(x):
    return isinstance(x, np.ndarray) or homes.is_away(x)


def _writable(x):
    return x if homes.is_away(x) or x.flags.writeable else x.copy()


def _taken(x):
    if _is_array(x) or not hasattr(x, "__dlpack__") or isinstance(x, np.generic):
        return x
    if getattr(x, "requires_grad", False):
        x = x.detach()
    if x.__dlpack_device__()[0] == CPU:
        return np.from_dlpack(x)
    if not hasattr(x, "__cuda_array_interface__"):
        raise TypeError(
            f"an array on DLPack's device {x.__dlpack_device__()}; bring it to a CPU or an NVIDIA "
            "GPU first."
        )
    return _cupy().from_dlpack(x)
