"""The contestants of a hypergradient on one GPU, in one process, each in its best form there.

Ours with CuPy's arrays; JAX's jit of the whole, stored and rematerialised, images convolved as one
product and by XLA's own convolution; PyTorch unrolled, and pulled back step by step. All with
products of full precision. On the device "cpu" the others run where JAX and PyTorch run without a
GPU, so that all this can be tried; what they take there means nothing.
"""

import importlib
import os
import time

import numpy as np

JAX = ("jax", "jax-remat", "jax-conv", "jax-remat-conv")
TORCH = ("torch", "torch-func")
TOLERANCES = {"value": 1e-4, "hypergradient": 1e-3}  # relative, of float32


class Missing(Exception):
    """A contestant that cannot take part, and why."""


def module_of(name, device):
    """Raises: Missing."""
    family = name.split("-")[0]
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or it takes three quarters
    try:
        importlib.import_module(family)
    except ImportError as error:
        raise Missing(f"no {family}: {error}") from error
    peer = importlib.import_module(f"peers.{family}_peer")
    peer.setup("float32", os.cpu_count(), device[family])
    if family == "jax":
        try:
            peer.jax.devices()
        except RuntimeError as error:
            raise Missing(f"JAX sees no GPU: {error}") from error
    elif device[family] != "cpu" and not peer.torch.cuda.is_available():
        raise Missing("PyTorch sees no GPU")
    return peer


def builders(names, put, device):
    """({name: build(problem) -> run() -> (value, gradients by name)}, {name: why it is missing}).

    device: of each family, as it calls it.
    """
    from peers import ours

    found, missing = {"revgrad": lambda problem: ours.build(problem, "reversible", put)}, {}
    for name in names:
        try:
            peer = module_of(name, device)
        except Missing as error:
            missing[name] = str(error)
        else:
            found[name] = lambda problem, peer=peer, name=name: peer.build(problem, name)
    return found, missing


def host(x):
    """Numbers of any kind of array, as float64."""
    if hasattr(x, "detach"):  # PyTorch
        x = x.detach().cpu()
    return np.asarray(x.get() if hasattr(x, "get") else x, np.float64)


def answer(run):
    """(seconds, value, hypergradient as one vector), which waits for the device."""
    began = time.perf_counter()
    value, gradients = run()
    value = float(host(value))
    vector = np.concatenate([host(gradients[k]).ravel() for k in sorted(gradients)])
    return time.perf_counter() - began, value, vector


def errors(value, vector, reference):
    return {
        "value": abs(value - reference[0]) / abs(reference[0]),
        "hypergradient": np.linalg.norm(vector - reference[1]) / np.linalg.norm(reference[1]),
    }


def contest(kind, steps, builds, deadline, rounds):
    """Seconds of each contestant's runs, by name; and what is to be said of those without.

    Values are compared first, over as many steps as rounding lets all stay together.
    """
    runs, times, said, reference = {}, {}, {}, None
    for name, build in builds.items():
        if time.perf_counter() > deadline:
            said[name] = "no time was left"
            continue
        try:
            began = time.perf_counter()
            short = build(kind(min(steps, kind.compared)))
            _, value, vector = answer(short)
            reference = reference or (value, vector)
            off = errors(value, vector, reference)
            if not all(off[k] <= TOLERANCES[k] for k in off):
                said[name] = f"another answer: off by {off}"
                continue
            if steps > kind.compared:
                began = time.perf_counter()
                runs[name] = build(kind(steps))
                answer(runs[name])
            else:
                runs[name] = short
            first = time.perf_counter() - began
        except Exception as error:  # memory above all, each library's own way
            said[name] = f"{type(error).__name__}: {str(error)[:200]}"
            runs.pop(name, None)
            continue
        times[name] = []
        said[name] = f"built and run once in {first:.1f} s; off by {off['hypergradient']:.0e}"
    for _ in range(rounds):
        for name, run in runs.items():
            last = times[name][-1:] or [0.0]
            if not times[name] or time.perf_counter() + last[0] < deadline:
                times[name].append(answer(run)[0])
    return times, said


def problem(name, small):
    """The problem with schedules per step and leaf; small: of a few examples."""
    from peers.problems import PROBLEMS

    kind, few = PROBLEMS[name], {"examples": 40, "tested": 8, "size": 4}
    return type(kind.__name__, (kind,), few) if small else kind
