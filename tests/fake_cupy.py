"""As much of CuPy as revgrad uses, on a CPU: arrays that refuse NumPy, kernels compiled by g++.

`installed()` puts it in CuPy's place. Kernels run in the fibers of cuda_shim.h. What CuPy does
later is done as late as its order allows: a copy that nobody waited for has not happened yet. While
a stream is captured nothing happens at all, see fake_streams.
"""

import contextlib
import ctypes
import functools
import hashlib
import inspect
import re
import shutil
import subprocess
import sys
import tempfile
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import cupy_functions
import fake_streams as streams
import numpy as np
import optree
import pytest
from numpy.lib.mixins import NDArrayOperatorsMixin

HERE = Path(__file__).parent
BUILT = Path(tempfile.gettempdir()) / "revgrad-twins"
FLAGS = ["-O1", "-shared", "-fPIC", "-fwrapv", "-ffp-contract=off", "-fno-strict-aliasing"]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-function",
            "-Wno-sign-compare", "-Wno-unused-parameter", "-Wno-unused-but-set-variable",
            "-Wno-unused-variable"]  # fmt: skip
PARAMETERS = {
    "int64_t": (np.int64, ctypes.c_int64), "uint64_t": (np.uint64, ctypes.c_uint64),
    "double": (np.float64, ctypes.c_double),
}  # fmt: skip
POINTERS = {
    "int64_t": np.int64, "int32_t": np.int32, "uint32_t": np.uint32, "uint16_t": np.uint16,
    "double": np.float64, "float": np.float32,
}  # fmt: skip
SCALARS = (int, float, complex, np.generic)
KNOWN = cupy_functions.read()  # of NumPy's functions, what CuPy has
WAYS = ("accumulate", "outer", "reduce", "reduceat")  # of a few ufuncs


class ndarray(NDArrayOperatorsMixin):
    """An array on the "device": `home` is the NumPy array that stands for its memory."""

    waits = 0  # how often the host waited for the device

    def __init__(self, home):
        self.home = np.asarray(home)
        self.token = streams.token_of(self.home)

    dtype = property(lambda self: self.home.dtype)
    shape = property(lambda self: self.home.shape)
    ndim = property(lambda self: self.home.ndim)
    size = property(lambda self: self.home.size)
    strides = property(lambda self: self.home.strides)
    itemsize = property(lambda self: self.home.itemsize)
    nbytes = property(lambda self: self.home.nbytes)
    flags = property(lambda self: Flags(self.home.flags))
    T = property(lambda self: ndarray(self.home.T))
    base = property(lambda self: streams.base_of(self.home, ndarray))
    data = property(lambda self: types.SimpleNamespace(ptr=self.home.ctypes.data))
    __hash__ = object.__hash__

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Use `.get()`.")

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if ufunc.__name__ not in KNOWN or method not in ("__call__", *WAYS):
            return NotImplemented
        if method != "__call__" and ufunc not in (np.add, np.multiply):
            raise NotImplementedError(f"{ufunc.__name__}.{method}")
        given = [*inputs, *options.get("out", ())]
        if not all(isinstance(x, (ndarray, *SCALARS)) for x in given):
            return NotImplemented
        homes = [_home(x) for x in inputs]
        if ufunc is np.matmul and streams.capturing():
            return _product(*homes, *(_home(x) for x in options.get("out", ())))
        if "out" in options:
            options["out"] = tuple(_home(x) for x in options["out"])
            streams.work(lambda: ufunc(*homes, **options))
            return given[len(inputs)]
        return _array(streams.kernel(lambda: ufunc(*homes, **options), homes))

    def __array_function__(self, function, kinds, args, options):
        if not all(issubclass(kind, ndarray) for kind in kinds):
            return NotImplemented
        name = f"{function.__module__}.{function.__name__}".removeprefix("numpy.")
        if name not in KNOWN:
            return NotImplemented
        taking(KNOWN[name]).bind(*args, **options)
        if name.endswith("_like"):
            if options.get("subok") is not None:
                raise TypeError("subok is not supported")
            if not options.get("shape"):  # () and 0 too
                options.pop("shape", None)
        args, options = optree.tree_map(_home, (args, options))
        if function.__name__ in PRODUCTS and streams.capturing():
            streams.cublas().gemmEx()
        if function is np.copyto:
            return streams.work(lambda: function(*args, **options))
        return _array(streams.kernel(lambda: function(*args, **options), (args, options)))

    def __getitem__(self, index):
        _refuse_numpy(index)
        index = optree.tree_map(_home, index)
        if any(x.dtype == bool for x in streams.leaves(index)):  # how many there are, it must know
            streams.wait()
        return _array(streams.kernel(lambda: self.home[index], self.home))

    def __setitem__(self, index, value):
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError("an array of NumPy cannot be put into one of CuPy")
        index, value = optree.tree_map(_home, (index, value))
        streams.work(lambda: self.home.__setitem__(index, value))

    def __len__(self):
        return len(self.home)

    __bool__ = lambda self: bool(self.get())
    __float__ = lambda self: float(self.get())
    __int__ = lambda self: int(self.get())
    __index__ = lambda self: self.get().__index__()
    __iter__ = lambda self: map(_array, self.home)

    def get(self, stream=None, order="C", out=None, blocking=True):
        ndarray.waits += blocking
        streams.wait()
        if out is None:
            return self.home.copy()
        if blocking or stream is None:
            out[...] = self.home
        else:
            stream.todo.append(lambda: np.copyto(out, self.home))
        return out

    def set(self, values, stream=None):
        self.home[...] = values

    def __getattr__(self, name):
        if name not in METHODS:
            raise AttributeError(f"cupy.ndarray has no {name} here")

        def method(*args, **options):
            args, options = optree.tree_map(_home, (args, options))
            if name == "item":
                streams.wait()
            compute = lambda: getattr(self.home, name)(*args, **options)
            return _array(streams.kernel(compute, self.home))

        return method

    def tobytes(self, order="C"):
        streams.wait()
        return self.home.tobytes(order)

    def tolist(self):
        streams.wait()
        return self.home.tolist()

    def fill(self, value):
        streams.work(lambda: self.home.fill(value))

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, _memo):
        return self.copy()

    def __repr__(self):
        return f"cupy{self.home!r}"


class Flags:
    """Those that CuPy has."""

    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous = flags.c_contiguous, flags.f_contiguous
        self.owndata = flags.owndata


@functools.cache
def taking(signature):
    return inspect.signature(eval(f"lambda {signature[1:-1]}: None"))


METHODS = {
    "all", "any", "argmax", "argmin", "astype", "clip", "conj", "copy", "cumsum", "dot", "item",
    "max", "mean", "min", "ravel", "reshape", "squeeze", "std", "sum", "swapaxes", "take",
    "transpose", "var", "view",
}  # fmt: skip
ndarray.__module__, ndarray.__qualname__ = "cupy", "ndarray"


def _home(x):
    return x.home if isinstance(x, ndarray) else x


def _array(tree):
    arrays = (np.ndarray, np.generic)
    return optree.tree_map(lambda x: ndarray(x) if isinstance(x, arrays) else x, tree)


PRODUCTS = ("dot", "tensordot", "einsum", "inner", "vdot")


def _product(a, b, out=None):
    """A product of matrices on a captured stream, by the calls that CuPy makes of cuBLAS."""
    rows, columns = np.atleast_2d(a), b if b.ndim > 1 else b[:, None]
    lead = np.broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
    shape = (*lead, rows.shape[-2], columns.shape[-1])
    made = streams.kernel(lambda: np.empty(shape, np.result_type(a, b)), ())
    call = streams.dot if made.ndim == 2 else streams.batched
    call(sys.modules["cupy_backends.cuda.libs"].cublas, rows, columns, made)
    made = made.reshape((*lead, *a.shape[-2:-1], *b.shape[1:][-1:]))
    if out is None:
        return ndarray(made)
    streams.work(lambda: np.copyto(out, made))
    return ndarray(out)


def _refuse_numpy(index):
    for x in index if isinstance(index, tuple) else (index,):
        if isinstance(x, np.ndarray) and x.ndim:
            raise TypeError("an index that is an array of NumPy, which would be copied at each use")


class RawModule:
    """Kernels, by the text that NVRTC would be given."""

    def __init__(self, *, code, options):
        assert "--fmad=false" in options, "fused multiply-adds change bits"
        self.twin = built(code)
        found = re.findall(r'extern "C" __global__ void (?:__launch\w+\(\w+\) )?(\w+)\(([^)]*)\)',
                           code)  # fmt: skip
        self.kernels = {name: parameters_of(text) for name, text in found}

    def get_function(self, name):
        types = self.kernels[name]
        launch = getattr(self.twin, f"launch_{name}")
        launch.argtypes = (ctypes.c_int64, ctypes.c_int, *(ctype for _, _, ctype in types))
        faults = ctypes.c_int.in_dll(self.twin, "shim_faults")
        order = ctypes.c_int.in_dll(self.twin, "shim_order")

        def call(grid, block, arguments):
            assert len(arguments) == len(types), f"{name}: {len(arguments)} of {len(types)}"
            given = [_argument(name, *pair) for pair in zip(types, arguments, strict=True)]

            def run():
                order.value = RawModule.order
                launch(grid[0], block[0], *given)
                assert faults.value == 0, f"threads of {name} parted where they should meet"

            streams.work(run)

        return call

    order = 0  # of threads, see shim_nth


def parameters_of(text):
    """[(name, dtype or dtype of what is pointed at, ctypes type)] of a list of C parameters."""
    found = []
    for one in text.split(","):
        words = one.replace("*", " * ").split()
        kind = next(word for word in words if word != "const")
        pointer = "*" in words
        found.append((words[-1], (POINTERS if pointer else PARAMETERS)[kind], ctypes.c_void_p)
                     if pointer else (words[-1], *PARAMETERS[kind]))  # fmt: skip
    return found


def _argument(kernel, wanted, given):
    name, dtype, ctype = wanted
    if ctype is ctypes.c_void_p:
        assert isinstance(given, ndarray), f"{kernel}({name}) is a {type(given).__name__}"
        assert given.dtype == dtype, f"{kernel}({name}) is {given.dtype}, not {np.dtype(dtype)}"
        assert given.home.flags.c_contiguous, f"{kernel}({name}) is not contiguous"
        return given.home.ctypes.data
    assert type(given) is dtype, f"{kernel}({name}) is a {type(given).__name__}"
    return given.item()


def built(code, more=()):
    """The library of a text, made once."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler on the path")
    shim = (HERE / "cuda_shim.h").read_text(encoding="utf-8")
    text = f"{shim}\n{code}\n{trampolines(code)}"
    name = hashlib.sha256("\0".join([text, *FLAGS, *more]).encode()).hexdigest()[:24]
    BUILT.mkdir(exist_ok=True)
    target = BUILT / f"{name}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=BUILT) as folder:
            source, made = Path(folder) / "twin.cc", Path(folder) / "twin.so"
            source.write_text(text, encoding="utf-8")
            subprocess.run([compiler, *FLAGS, *WARNINGS, *more, "-o", made, source], check=True)
            made.replace(target)
    return ctypes.CDLL(str(target))


def trampolines(code):
    """For each kernel a C function that launches it."""
    found = re.findall(r'extern "C" __global__ void (?:__launch\w+\(\w+\) )?(\w+)\(([^)]*)\)', code)
    lines = []
    for name, parameters in found:
        names = [one.split()[-1].lstrip("*") for one in parameters.split(",")]
        fields = " ".join(f"{one.strip()};" for one in parameters.split(","))
        passed = ", ".join(f"a->{x}" for x in names)
        lines += [
            f"struct arguments_{name} {{ {fields} }};",
            f"static void body_{name}(void *p) {{ arguments_{name} *a = (arguments_{name} *)p; "
            f"{name}({passed}); }}",
            f'extern "C" void launch_{name}(int64_t blocks, int threads, {parameters})',
            f"{{ arguments_{name} a = {{{', '.join(names)}}}; "
            f"shim_launch(blocks, threads, body_{name}, &a); }}",
        ]
    return "\n".join(lines)


class Device:
    id = 0

    def synchronize(self):
        streams.wait()


class Runtime:
    count = 1

    def getDeviceCount(self):
        return self.count

    def getDeviceProperties(self, _device):
        return {"name": b"no GPU"}

    def driverGetVersion(self):
        return 0

    def runtimeGetVersion(self):
        return 0

    def memGetInfo(self):
        return 2**33, 2**34


def _module():
    cupy = types.ModuleType("cupy")
    cupy.ndarray, cupy.RawModule, cupy.__version__ = ndarray, RawModule, "fake"
    cupy.asarray = lambda x, dtype=None: (
        x if isinstance(x, ndarray) and dtype in (None, x.dtype) else cupy.array(x, dtype)
    )
    cupy.array = _array_of
    cupy.ascontiguousarray = lambda x, dtype=None: ndarray(np.ascontiguousarray(_home(x), dtype))
    cupy.may_share_memory = lambda x, y: np.may_share_memory(_home(x), _home(y))
    cupy.asnumpy = lambda x: x.get() if isinstance(x, ndarray) else np.asarray(x)
    for name in ("empty", "zeros", "ones", "full", "arange"):
        setattr(cupy, name, _made(getattr(np, name)))
    for name in ("empty_like", "zeros_like", "broadcast_to", "concatenate", "result_type"):
        setattr(cupy, name, _made(getattr(np, name)))
    cupy.cuda = types.SimpleNamespace(
        Device=Device, Stream=streams.Stream, Event=streams.Event, Graph=streams.Graph,
        get_current_stream=streams.current, runtime=Runtime(), Memory=streams.Memory,
        MemoryPool=streams.Pool, using_allocator=streams.using_allocator,
        alloc_pinned_memory=lambda size: streams.pinned_memory.allocator(size),
        set_pinned_memory_allocator=streams.pinned_memory.set,
    )  # fmt: skip
    cupy.get_default_memory_pool = streams.Pool
    cupy.get_default_pinned_memory_pool = lambda: streams.pinned_memory
    cupy.__spec__ = ModuleSpec("cupy", None)
    return cupy


def _array_of(x, dtype=None):
    if isinstance(x, ndarray):
        return ndarray(streams.kernel(lambda: np.array(x.home, dtype), ()))
    return ndarray(streams.upload(x, dtype))


def _made(function):
    def make(*args, **options):
        args, options = optree.tree_map(_home, (args, options))

        def compute():
            made = function(*args, **options)
            if function is np.empty and made.dtype.kind != "O":  # nobody may count on zeros
                made.view(np.uint8 if made.ndim else made.dtype).fill(0xA5 if made.ndim else 0)
            return made

        return _array(streams.kernel(compute, (args, options)))

    return make


@contextlib.contextmanager
def installed():
    """The fake in the place of CuPy, and revgrad's kernel for it."""
    names = ("cupy", "cupy_backends.cuda.libs", "revgrad._ext.cuda", "revgrad._ext.products")
    before = {name: sys.modules.pop(name, None) for name in names}
    sys.modules["cupy"] = _module()
    sys.modules["cupy_backends.cuda.libs"] = types.SimpleNamespace(cublas=streams.cublas())
    import revgrad._ext.products as products

    products.cublas = streams.CuBLAS
    try:
        yield sys.modules["cupy"]
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
        import revgrad._ext as ext

        for name in ("cuda", "products"):
            ext.__dict__.pop(name, None)
