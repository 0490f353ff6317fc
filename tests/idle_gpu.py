"""CuPy itself on a GPU that does nothing: `python tests/idle_gpu.py`, without a GPU.

What a fake CuPy cannot show is whether CuPy takes the calls: its names, keywords, dtypes, shapes,
and what it does not convert. Here CUDA's functions are replaced, one by one, before CuPy binds to
them: memory is the host's and zero, copies are made, kernels are not run (ours are compiled, CuPy's
own are not). So every value that a kernel should have made is 0, and what is checked is that
nothing but revgrad's errors about values is raised. It needs CuPy (cupy-cuda12x 14), its compiler
(nvidia-cuda-nvrtc-cu12), and cc and nm for an empty cuBLAS. CuPy's sorts, its FFTs and cuSOLVER are
beyond it.
"""

import ctypes
import os
import subprocess
import tempfile
import traceback
import warnings
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np

LIMITS = {75: 9, 76: 0, 10: 32}  # of compute capability, and of a warp; all others are 1024
DEVICE = {
    "name": b"idle", "major": 9, "minor": 0, "warpSize": 32, "multiProcessorCount": 100,
    "maxThreadsPerBlock": 1024, "sharedMemPerBlock": 49152, "totalGlobalMem": 2**36,
    "maxThreadsPerMultiProcessor": 2048, "regsPerBlock": 65536, "l2CacheSize": 2**25,
}  # fmt: skip
KINDS = {
    "PyObject *": (ctypes.py_object, None), "intptr_t": (ctypes.c_ssize_t, "handle"),
    "int": (ctypes.c_int, 0), "unsigned int": (ctypes.c_uint, 0), "size_t": (ctypes.c_size_t, 1024),
}  # fmt: skip
LEFT = {"get_build_version", "_getCUDAMajorVersion"}  # which need no GPU
PLANTED = "an array of NumPy among those of CuPy"
held, memory, handles = [], {}, iter(range(4096, 2**62, 16))


def malloc(size, *_):
    block = ctypes.create_string_buffer(size + 512)
    at = -(-ctypes.addressof(block) // 512) * 512
    memory[at] = block
    return at


def free(at, *_):
    memory.pop(at, None)


def copy(to, source, size, *_):
    ctypes.memmove(to, source, size)


def fill(at, value, size, *_):
    ctypes.memset(at, value, size)


ALLOCATORS = {"malloc", "mallocAsync", "mallocManaged", "mallocFromPoolAsync", "hostAlloc"}
WORD = ctypes.c_ssize_t
FUNCTIONS = {
    **dict.fromkeys(ALLOCATORS, (malloc, [WORD])),
    **dict.fromkeys(("free", "freeHost", "freeAsync"), (free, [WORD])),
    **dict.fromkeys(("memcpy", "memcpyAsync"), (copy, [WORD] * 3)),
    **dict.fromkeys(("memset", "memsetAsync"), (fill, [WORD, ctypes.c_int, WORD])),
    **dict.fromkeys(("runtimeGetVersion", "driverGetVersion"), (lambda: 12080, [])),
    "memGetInfo": (lambda: (2**36, 2**36), []),
    "getDeviceProperties": (lambda *_: DEVICE, []),
    "getDeviceCount": (lambda: 1, []),
    "deviceGetAttribute": (lambda which, *_: LIMITS.get(which, 1024), [ctypes.c_int]),
}


def idle(module):
    """Let the functions of one of CuPy's modules over CUDA do nothing, for C and for Python."""
    set_pointer, name_of = ctypes.pythonapi.PyCapsule_SetPointer, ctypes.pythonapi.PyCapsule_GetName
    set_pointer.argtypes = [ctypes.py_object, ctypes.c_void_p]
    name_of.argtypes, name_of.restype = [ctypes.py_object], ctypes.c_char_p
    for name, capsule in module.__pyx_capi__.items():
        kind, called, _ = name_of(capsule).decode().partition("(")
        if not called or kind.strip() not in KINDS or name in LEFT:
            continue
        answer, usual = KINDS[kind.strip()]
        function, taken = FUNCTIONS.get(name, (partial(_usual, usual), []))
        made = ctypes.PYFUNCTYPE(answer, *taken)(function)
        held.append(made)
        set_pointer(capsule, ctypes.cast(made, ctypes.c_void_p))
        if hasattr(module, name):
            setattr(module, name, lambda *args, function=function, **_: function(*args))


def _usual(value, *_):
    return next(handles) if value == "handle" else value


def empty_cublas(package):
    """Where a library is with the names that CuPy wants of cuBLAS, and we, which does nothing."""
    wanted = next((package / "cupy_backends/cuda/libs").glob("cublas.*.so"))
    names = subprocess.run(["nm", "-D", "--undefined-only", wanted], capture_output=True, text=True,
                           check=True).stdout  # fmt: skip
    pairs = [x.split()[-1].split("@") for x in names.splitlines() if "cublas" in x]
    library, folder = pairs[0][1], Path(tempfile.mkdtemp(prefix="revgrad-idle-"))
    names = [*(name for name, _ in pairs), "cublasSetWorkspace_v2"]
    text = "\n".join(f"int {name}(void) {{ return 0; }}" for name in names)
    (folder / "empty.c").write_text(text, encoding="utf-8")
    (folder / "empty.map").write_text(f"{library} {{ global: *; }};", encoding="utf-8")
    script = f"-Wl,-soname,{library},--version-script={folder / 'empty.map'}"
    subprocess.run(["cc", "-shared", "-fPIC", script, "-o", folder / library, folder / "empty.c"],
                   check=True)  # fmt: skip
    held.append(ctypes.CDLL(str(folder / library), ctypes.RTLD_GLOBAL))
    return SimpleNamespace(abs_path=str(folder / library))


def installed():
    """CuPy, idle. To be called before anybody imports it."""
    import cupy_backends.cuda.api.driver as driver
    import cupy_backends.cuda.api.runtime as runtime

    found = {"cublas": empty_cublas(Path(driver.__file__).parents[3])}
    idle(runtime)
    idle(driver)
    import cupy
    from cuda import pathfinder
    from cupy.cuda import compiler, function

    load, build = pathfinder.load_nvidia_dynamic_lib, compiler._compile_module_with_cache

    def compiled(source, options, *args, **kwargs):
        if "line_up" in source:  # one of ours
            return build(source, options, *args, **kwargs)
        module = function.Module()
        module.load(b"")
        return module

    true = lambda shape: cupy.asarray(np.ones(shape or 1, bool)).reshape(shape)
    answer = lambda a, axis=None, keepdims=False: np.all(np.ones(a.shape), axis, keepdims=keepdims)
    named = lambda name: load(name) if name == "nvrtc" else found.get(name)
    pathfinder.load_nvidia_dynamic_lib = named
    compiler._compile_module_with_cache = compiled
    cupy.cuda.set_allocator(None)  # fresh memory, which is zero
    cupy.isfinite = lambda x, **_: true(x.shape)
    cupy.all = lambda a, axis=None, out=None, keepdims=False: true(answer(a, axis, keepdims).shape)
    cupy.argsort = lambda a, axis=-1, kind=None: cupy.asarray(np.argsort(a.get(), axis))
    return cupy


def agree(cupy, run, **_):
    """What the tests ask of a device, but for the values."""
    import optree
    from test_cuda_train import put_nowhere

    from revgrad._ext import homes

    here, there = (optree.tree_leaves(run(put)) for put in (put_nowhere, cupy.asarray))
    kind = lambda x: (homes.to_host(x).dtype, np.shape(x))
    if [*map(kind, here)] != [*map(kind, there)]:
        raise TypeError(f"{[*map(kind, there)]} where {[*map(kind, here)]} are wanted")
    return here, there


def runs():
    """{name: what calls CuPy as a test on a GPU does}."""
    import test_cuda_fit as fits
    import test_cuda_forward as forwards
    import test_cuda_scan as scans
    import test_cuda_train as trains

    import revgrad as rg

    for module in (fits, forwards, scans, trains):
        module.agree = agree
    of = lambda name, made: lambda put: trains.derivatives(put, name, made)[:3]

    def derivatives(cupy, name, made):
        agree(cupy, of(name, made))

    calls = [(derivatives, *x) for x in product(trains.OPTIMIZERS, trains.ADJOINTS.values())]
    calls += [(fits.test_fit_has_the_cpus_bits, name) for name in fits.TOWERS]
    calls += [(forwards.test_the_options_of_forward, x) for x in forwards.OPTIONS.values()]
    calls += [(scans.test_scan_has_the_cpus_bits, *x) for x in product(scans.CELLS, scans.ADJOINTS)]
    network = scans.test_networks_have_the_cpus_hypergradients
    calls += [(network, *x) for x in product(scans.NETWORKS, (rg.Reversible(), rg.Forward()))]
    calls += [
        (captured,),
        (fits.test_hyper_on_the_device_learns_there,),
        (forwards.test_forward_mode,),
        (forwards.test_a_loss_that_cannot_be_recorded,),
        (forwards.test_hyper_on_the_host_whose_numbers_the_loss_takes_apart,),
        (forwards.test_the_transposed_clip_with_a_bound_per_weight,),
        (trains.test_hyper_on_the_device_has_its_derivative_there,),
    ]
    return {f"{test.__name__} {args}": partial(_call, test, args) for test, *args in calls}


def captured(cupy):
    """A compiled function becomes a graph, as far as CuPy's calls go."""
    import revgrad as rg

    f = rg.compile(lambda x, w: np.tanh(x @ w) * 2)
    for _ in range(5):
        f(cupy.zeros((5, 5), np.float32), cupy.zeros((5, 3), np.float32))
    why = [entry.replay().graphs.why for entry in f.entries.values()]
    if any(why):
        raise TypeError(f"no graph: {why}")


def _call(test, args, cupy):
    test(cupy, *args)


BEYOND = ("cudaErrorInvalidDevice", "libcufft", "_handle_uint")  # what needs more than this GPU
VALUES = ("delete", "add.reduce")  # one needs values; CuPy's sum has no where=


def samples(cupy):
    """{rule: a refusal} of derivatives of what CuPy takes when it is called plainly; how many."""
    import optree
    import samples as table
    import samples_numpy  # noqa: F401  (they fill the table)

    from revgrad import jvp, vjp

    refused, tried = {}, 0
    for sample in table.samples:
        args = [cupy.asarray(x) for x in sample.arrays()]
        try:
            assert not sample.host
            sample.f(*args)
        except Exception:  # CuPy has no such function, argument, or library here
            continue
        tried += 1
        try:
            out, pullback = vjp(sample.f, *args)
            pullback(optree.tree_map(np.ones_like, out))
            jvp(sample.f, tuple(args), tuple(map(np.ones_like, args)))
        except Exception as error:
            if not any(x in str(error) for x in BEYOND) and not str(sample).startswith(VALUES):
                refused[str(sample)] = f"{type(error).__name__}: {error}"
    return refused, tried


def main():
    from revgrad.errors import PrecisionWarning, RevgradError

    cupy = installed()
    about_values = (RevgradError, AssertionError, PrecisionWarning)
    refused = {}
    warnings.simplefilter("ignore")
    calls = {PLANTED: lambda cupy: cupy.zeros(3) + np.ones(3)} | runs()
    for name, run in calls.items():
        try:
            run(cupy)
        except about_values:
            pass
        except Exception as error:
            refused[name] = f"{type(error).__name__}: {error}"
            if name != PLANTED:
                traceback.print_exc()
    assert refused.pop(PLANTED, None), "what CuPy refuses was not noticed"
    more, tried = samples(cupy)
    refused |= more
    for name, why in refused.items():
        print(f"{name}: {why}")
    print(f"{len(refused)} of {len(calls) + tried} refused", flush=True)
    os._exit(bool(refused))  # CuPy's own ending would call functions that Python has let go


if __name__ == "__main__":
    main()
