"""Matrix products inside a graph: the calls that CuPy makes of cuBLAS, on a handle of our own.

CuPy refuses cuBLAS on a stream that is captured (cupy/cupy#6290); cuBLAS takes it, given memory to
work in. CuPy 14 looks its functions up in a module at each call, so while a stream is captured
those of CALLS are others there: the same arguments go to the same function of the same library.
Where CuPy does not do so (before 14), it refuses as ever, and what called it is not captured.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import cupy

# By CuPy's name: cuBLAS's, and its parameters behind the handle: int, long long, pointer.
CALLS = {
    "gemmEx": ("cublasGemmEx", "iiiii p pii pii p pii ii"),
    "gemmStridedBatchedEx": ("cublasGemmStridedBatchedEx", "iiiii p piil piil p piil i ii"),
    "sgemmBatched": ("cublasSgemmBatched", "iiiii p pi pi p pi i"),
    "dgemmBatched": ("cublasDgemmBatched", "iiiii p pi pi p pi i"),
}
TYPES = {"i": ctypes.c_int, "l": ctypes.c_longlong, "p": ctypes.c_void_p}
COMPUTE = {0: 68, 1: 70}  # CUDA_R_32F and 64F, which CuPy may say, as cublasComputeType_t
WORKSPACE = 32 * 2**20  # bytes that cuBLAS takes by itself on a Hopper GPU
_handles = threading.local()


def cublas() -> Any:
    """The cuBLAS that CuPy has loaded. Raises: ImportError."""
    found = import_module("cuda.pathfinder").load_nvidia_dynamic_lib("cublas")
    return ctypes.CDLL(found.abs_path)


class Handle:
    """cuBLAS on one stream, with a fixed workspace: so its choices do not depend on chance."""

    def __init__(self) -> None:
        self.cublas, self.handle = cublas(), ctypes.c_void_p()
        sizes = re.findall(r":(\d+):(\d+)", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""))
        size = sum(1024 * int(kib) * int(count) for kib, count in sizes) or WORKSPACE
        self.workspace = cupy.cuda.Memory(size)
        self._call("cublasCreate_v2", "p", ctypes.addressof(self.handle))

    def bind(self, stream: Any) -> None:
        self._call("cublasSetStream_v2", "pp", self.handle, stream.ptr)
        place = self.workspace.ptr, self.workspace.size  # which a change of stream had forgotten
        self._call("cublasSetWorkspace_v2", "ppp", self.handle, *place)

    def product(self, name: str, *given: Any) -> None:
        """The call that CuPy makes, but for its handle."""
        there, parameters = CALLS[name]
        if name == "gemmStridedBatchedEx":
            *rest, compute, algorithm = given
            given = *rest, COMPUTE.get(compute, compute), algorithm
        self._call(there, "p" + parameters.replace(" ", ""), self.handle, *given)

    def _call(self, name: str, parameters: str, *given: Any) -> None:
        function = getattr(self.cublas, name)
        function.argtypes, function.restype = [TYPES[p] for p in parameters], ctypes.c_int
        status = function(*given)
        if status:
            raise RuntimeError(f"{name} says {status}")


@contextmanager
def on(stream: Any) -> Iterator[None]:
    """While in it, products of this thread go to the stream; other threads' go where they went."""
    kept, device, thread = vars(_handles), cupy.cuda.Device().id, threading.get_ident()
    try:
        backend = import_module("cupy_backends.cuda.libs").cublas
    except ImportError:  # no cuBLAS: then there are no products either
        yield
        return
    if device not in kept:
        kept[device] = Handle()
    handle = kept[device]
    handle.bind(stream)
    before = {name: getattr(backend, name) for name in CALLS}

    def replaced(name: str) -> Any:
        def call(theirs: Any, *given: Any) -> Any:
            if threading.get_ident() != thread:
                return before[name](theirs, *given)
            return handle.product(name, *given)

        return call

    try:
        for name in CALLS:
            setattr(backend, name, replaced(name))
        yield
    finally:
        for name, function in before.items():
            setattr(backend, name, function)
