"""CUDA's streams and graphs for tests/fake_cupy.py: while a stream is captured, nothing happens.

A captured operation is noted with the memory that it reads and writes, which holds rubbish until
then, and done at each launch. What CUDA refuses is refused: to wait, to read from the host.
"""

import contextlib
import ctypes
import threading
import weakref

import numpy as np
import optree

POISON = 0xA5
_here = threading.local()
_tokens = weakref.WeakValueDictionary()  # id of the memory -> the Token of all arrays in it


class CUDARuntimeError(RuntimeError):
    pass


class Token:
    """Dies when nobody holds an array of some memory any more: it is then the pool's again."""


def token_of(home):
    return _tokens.setdefault(id(root_of(home)), Token())


def root_of(home):
    while isinstance(home.base, np.ndarray):
        home = home.base
    return home


def base_of(home, kind):
    root = root_of(home)
    return None if root is home else kind(root)


def poison(home):
    """Rubbish; of integers zeros: for the shapes, what takes them for rows is computed of it."""
    if home.dtype.kind in "iu":
        home.fill(0)
    elif home.dtype.kind != "O":
        home.reshape(-1).view(np.uint8).fill(POISON)


def leaves(tree):
    return [x for x in optree.tree_leaves(tree) if isinstance(x, (np.ndarray, np.generic))]


def kernel(compute, reads):
    """What `compute` returns, a view of `reads` or new; new memory is filled at each launch."""
    graph = capturing()
    if graph is None:
        return compute()
    with np.errstate(all="ignore"):
        found = optree.tree_map(
            lambda x: np.asarray(x) if isinstance(x, np.generic) else x, compute()
        )
    made = leaves(found)
    if any(np.may_share_memory(x, y) for x in made for y in leaves(reads)):
        return found
    for x in made:
        poison(x)
    graph.writes(made)

    def fill():
        for x, y in zip(made, leaves(compute()), strict=True):
            x[...] = y

    graph.todo.append(fill)
    return found


def work(compute):
    """Do what writes to memory that is there already, now or at each launch."""
    graph = capturing()
    if graph is None:
        return compute()
    return graph.todo.append(compute)


def wait():
    """The host asks for something."""
    graph = capturing()
    if graph is not None:
        graph.broken = True
        raise CUDARuntimeError(
            "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"
        )


def upload(values, dtype=None):
    """An array of the host, by pinned memory that is soon used for something else."""
    values = np.array(values, dtype)
    graph = capturing()
    if not values.ndim:
        return kernel(values.copy, ())
    pinned_memory.allocator(values.nbytes)
    made = kernel(values.copy, ())
    if graph is not None:
        graph.staged.append(values)
    return made


class PinnedMemory:
    """allocator: what gives pinned memory."""

    def malloc(self, size):
        return bytearray(size)

    def __init__(self):
        self.allocator = self.malloc

    def set(self, allocator=None):
        self.allocator = allocator or self.malloc


pinned_memory = PinnedMemory()


class Pool:
    """A MemoryPool, as far as one can tell whose memory is whose."""

    def malloc(self, size):
        raise AssertionError("only asked for by name")

    def free_all_blocks(self):
        pass

    def total_bytes(self):
        return 0


@contextlib.contextmanager
def using_allocator(malloc):
    before, _here.pool = getattr(_here, "pool", None), malloc.__self__
    try:
        yield
    finally:
        _here.pool = before


class Memory:
    def __init__(self, size):
        self.size, self._raw = size, np.empty(size + 1, np.uint8)
        self.ptr = self._raw.ctypes.data


class Graph:
    """What was noted, and in whose memory it goes on."""

    launches = 0  # of all graphs

    def __init__(self):
        self.todo, self.staged, self.written, self.broken = [], [], [], False

    def writes(self, made):
        pool = getattr(_here, "pool", None)
        owner = (lambda: None) if pool is None else weakref.ref(pool)
        self.written += [(weakref.ref(token_of(x)), owner) for x in made]

    def launch(self, stream=None):
        for token, pool in self.written:
            assert token() or pool(), "a graph writes to memory that others may have by now"
        Graph.launches += 1
        with np.errstate(all="ignore"):
            for one in self.todo:
                one()


def capturing():
    """The graph that this thread's current stream is noted in, or None."""
    stack = getattr(_here, "streams", None)
    return stack[-1].graph if stack else None


def current():
    stack = getattr(_here, "streams", None)
    return stack[-1] if stack else Stream.null


class Stream:
    """Work that is done when somebody waits for it."""

    null, made = None, 0

    def __init__(self, non_blocking=False):
        self.todo, self.graph, self.non_blocking = [], None, non_blocking
        self.ptr, Stream.made = Stream.made, Stream.made + 1

    def synchronize(self):
        wait()
        while self.todo:
            self.todo.pop(0)()

    def wait_event(self, event):
        event.synchronize()

    def begin_capture(self, mode=None):
        if not self.ptr:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        assert self.non_blocking, "the default stream would be in its way"
        self.graph = Graph()

    def end_capture(self):
        graph, self.graph = self.graph, None
        if graph.broken:
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated")
        for values in graph.staged:
            poison(values)
        return graph

    def is_capturing(self):
        return self.graph is not None

    def __enter__(self):
        if not hasattr(_here, "streams"):
            _here.streams = []
        _here.streams.append(self)
        return self

    def __exit__(self, *_):
        _here.streams.pop()
        return False


class Event:
    def __init__(self, **_):
        self.stream = None

    def record(self, stream=None):
        self.stream, self.upto = stream, len(stream.todo) if stream else 0

    def synchronize(self):
        wait()
        if self.stream:
            for _ in range(min(self.upto, len(self.stream.todo))):
                self.stream.todo.pop(0)()
            self.upto = 0

    @property
    def done(self):
        return not (self.stream and self.upto)


Stream.null = Stream()


# cuBLAS: the functions of CuPy's module, which refuse a captured stream, and those of the library,
# which do not.

SIGNATURES = {  # behind the handle, as cublas_api.h has them: i int, l long long, p pointer
    "cublasGemmEx": "iiiiippiipiippiiii",
    "cublasGemmStridedBatchedEx": "iiiiippiilpiilppiiliii",
    "cublasSgemmBatched": "iiiiippipippii",
    "cublasDgemmBatched": "iiiiippipippii",
}
CTYPES = {"i": ctypes.c_int, "l": ctypes.c_longlong, "p": ctypes.c_void_p}
REALS = {0: np.float32, 1: np.float64}  # CUDA_R_32F, CUDA_R_64F


def matrix(address, dtype, rows, columns, ld, transposed):
    """op of a matrix in memory, column after column."""
    if transposed:
        rows, columns = columns, rows
    size = np.dtype(dtype).itemsize
    raw = (ctypes.c_uint8 * (size * ((columns - 1) * ld + rows))).from_address(address)
    found = np.ndarray((rows, columns), dtype, raw, strides=(size, size * ld))
    return found.T if transposed else found


def number(address, dtype):
    return np.ctypeslib.as_array((ctypes.c_uint8 * np.dtype(dtype).itemsize).from_address(address))


class CuBLAS:
    """libcublas, by address. workspace: of the last handle."""

    def __init__(self):
        self.stream = self.workspace = None

    def __getattr__(self, name):
        if name not in ("cublasCreate_v2", "cublasSetStream_v2", "cublasSetWorkspace_v2",
                        *SIGNATURES):  # fmt: skip
            raise AttributeError(name)
        found = Function(self, name)
        setattr(self, name, found)
        return found

    def do(self, name, handle, *given):
        if name == "cublasCreate_v2":
            ctypes.c_void_p.from_address(handle).value = 4711
            return
        assert handle == 4711
        if name == "cublasSetStream_v2":
            self.stream, self.workspace = given[0], None  # a new stream forgets the workspace
        elif name == "cublasSetWorkspace_v2":
            assert given[0] % 256 == 0 or given[1] > 0
            self.workspace = given
        else:
            assert self.workspace, "cuBLAS would allocate while a stream is captured"
            getattr(self, name[6:].replace("Sgemm", "gemm").replace("Dgemm", "gemm"))(name, *given)

    def GemmEx(self, _name, ta, tb, m, n, k, one, a, ka, la, b, kb, lb, zero, c, kc, lc, compute,
               algorithm):  # fmt: skip
        assert ka == kb == kc and compute == {0: 68, 1: 70}[kc] and algorithm in (-1, 99)
        self.product(REALS[kc], ta, tb, m, n, k, one, a, la, b, lb, zero, c, lc)

    def GemmStridedBatchedEx(self, _name, ta, tb, m, n, k, one, a, ka, la, sa, b, kb, lb, sb, zero,
                             c, kc, lc, sc, count, compute, algorithm):  # fmt: skip
        assert ka == kb == kc and compute == {0: 68, 1: 70}[kc] and algorithm in (-1, 99)
        size = np.dtype(REALS[kc]).itemsize
        for i in range(count):
            a_i, b_i, c_i = a + i * sa * size, b + i * sb * size, c + i * sc * size
            self.product(REALS[kc], ta, tb, m, n, k, one, a_i, la, b_i, lb, zero, c_i, lc)

    def gemmBatched(self, name, ta, tb, m, n, k, one, a, la, b, lb, zero, c, lc, count):
        dtype = {"S": np.float32, "D": np.float64}[name[6]]

        def later():  # the addresses are read from the device's memory
            lists = [np.ctypeslib.as_array((ctypes.c_uint64 * count).from_address(x)).tolist()
                     for x in (a, b, c)]  # fmt: skip
            for a_i, b_i, c_i in zip(*lists, strict=True):
                self.product(dtype, ta, tb, m, n, k, None, a_i, la, b_i, lb, None, c_i, lc)

        work(later)

    def product(self, dtype, ta, tb, m, n, k, one, a, la, b, lb, zero, c, lc):
        if one is not None:
            assert number(one, dtype).view(dtype)[0] == 1 and not number(zero, dtype).any()
        a, b = matrix(a, dtype, m, k, la, ta), matrix(b, dtype, k, n, lb, tb)
        c = matrix(c, dtype, m, n, lc, 0)
        work(lambda: np.copyto(c.T, np.matmul(b.T, a.T)))  # rows after rows, as they were


class Function:
    """One of cuBLAS, called as ctypes calls it."""

    def __init__(self, cublas, name):
        self.cublas, self.name, self.argtypes, self.restype = cublas, name, None, None

    def __call__(self, *given):
        short = {"cublasCreate_v2": "", "cublasSetStream_v2": "p", "cublasSetWorkspace_v2": "pp"}
        wanted = "p" + short.get(self.name, SIGNATURES.get(self.name, ""))
        assert self.argtypes == [CTYPES[x] for x in wanted], f"{self.name} takes {wanted}"
        assert len(given) == len(wanted)
        plain = [getattr(t(getattr(x, "value", x)), "value", None) or 0
                 for t, x in zip(self.argtypes, given, strict=True)]  # fmt: skip
        self.cublas.do(self.name, *plain)
        return 0


class Cublas:
    """cupy_backends.cuda.libs.cublas."""


def _refusing(name):
    def call(*_):
        raise NotImplementedError(
            "calling cuBLAS API during stream capture is currently unsupported"
        )

    return call


def cublas():
    found = Cublas()
    for name in ("gemmEx", "gemmStridedBatchedEx", "sgemmBatched", "dgemmBatched"):
        setattr(found, name, _refusing(name))
    return found


def dot(backend, a, b, out):
    """As CuPy calls cuBLAS for a product of matrices (`dot` in _routines_linalg.pyx)."""
    k, (n, m) = len(b), out.shape
    kind = {np.dtype(v): c for c, v in REALS.items()}[out.dtype]
    a, ta, la = _contiguous(a.T, 0)
    b, tb, lb = _contiguous(b, 1)
    one, zero = np.ones((), out.dtype), np.zeros((), out.dtype)
    backend.gemmEx(
        0, tb, ta, m, n, k, one.ctypes.data, b.ctypes.data, kind, lb, a.ctypes.data, kind, la,
        zero.ctypes.data, out.ctypes.data, kind, m, {0: 68, 1: 70}[kind], 99,
    )  # fmt: skip
    capturing().todo.append(lambda kept=(a, b): None)  # copies of operands are the pool's


def _contiguous(a, transposed):
    if a.flags.f_contiguous:
        return a, transposed, max(a.strides[1] // a.itemsize, a.shape[0])
    if not a.flags.c_contiguous:
        a = kernel(lambda x=a: x.copy(), ())
    return a, 1 - transposed, max(a.strides[0] // a.itemsize, a.shape[1])


def batched(backend, a, b, out):
    """As CuPy calls cuBLAS for products of stacks (`matmul` in _routines_linalg.pyx)."""
    a, b = (x if x.flags.c_contiguous else kernel(lambda x=x: x.copy(), ()) for x in (a, b))
    lead, (n, m), k = out.shape[:-2], out.shape[-2:], a.shape[-1]
    one, zero, kind = np.ones((), out.dtype), np.zeros((), out.dtype), {4: 0, 8: 1}[out.itemsize]
    ends = one.ctypes.data, zero.ctypes.data
    if a.shape[:-2] == b.shape[:-2]:
        backend.gemmStridedBatchedEx(
            0, 0, 0, m, n, k, ends[0], b.ctypes.data, kind, m, k * m, a.ctypes.data, kind, k, n * k,
            ends[1], out.ctypes.data, kind, m, n * m, int(np.prod(lead)), kind, -1,
        )  # fmt: skip
    else:
        lists = [_addresses(x, lead) for x in (b, a, out)]
        call = backend.sgemmBatched if out.dtype == np.float32 else backend.dgemmBatched
        call(0, 0, 0, m, n, k, ends[0], lists[0].ctypes.data, m, lists[1].ctypes.data, k, ends[1],
             lists[2].ctypes.data, m, int(np.prod(lead)))  # fmt: skip
        capturing().todo.append(lambda kept=lists: None)
    capturing().todo.append(lambda kept=(a, b): None)


def _addresses(x, lead):
    whole = np.broadcast_to(x, (*lead, *x.shape[-2:]))
    return np.array([whole[i].__array_interface__["data"][0] for i in np.ndindex(*lead)], np.uint64)
