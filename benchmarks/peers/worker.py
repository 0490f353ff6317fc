"""One contestant in a process of its own, that runs when it is told to.

The parent holds a Contestant: `start` returns when it is built and has run once, `run` returns the
seconds of one more run. Peak memory is that of the first run above what the process held before
it, when libraries, data, and for JAX and compiled PyTorch the program, were there: what a library
keeps from its first use on is counted.
"""

import importlib
import importlib.util
import multiprocessing
import os
import resource
import sys
import time
from contextlib import suppress

import numpy as np

MODULES = {"jax": "jax_peer", "torch": "torch_peer", "autograd": "autograd_peer"}
MODULES |= {"numpy": "numpy_peer"}
OURS = ("reversible", "stored", "checkpointed", "unrolled")
THEIRS = ("jax", "jax-remat", "torch", "torch-func", "torch-compile", "autograd", "numpy-hand")
PLAIN = ("plain", "numpy-plain", "jax-plain", "torch-plain")


class Missing(Exception):
    """A contestant that cannot take part, and why."""


def module_of(name):
    """Raises: Missing where what it needs is not installed."""
    family = name.split("-")[0]
    if family not in MODULES:
        import revgrad

        if name != "plain" and not hasattr(revgrad, name.capitalize()):
            raise Missing(f"this revgrad has no {name.capitalize()}")
        return importlib.import_module("peers.ours")
    wanted = {"numpy": "numpy"}.get(family, family)
    if importlib.util.find_spec(wanted) is None:
        raise Missing(f"{wanted} is not installed")
    return importlib.import_module("peers." + MODULES[family])


class Contestant:
    """A process; made at once, ready after `start`."""

    def __init__(self, name, problem, steps, dtype, threads, limit, clock):
        context = multiprocessing.get_context("spawn")
        self.name, self.times = name, []
        self.pipe, theirs = context.Pipe()
        args = (theirs, name, problem, steps, dtype, threads, limit, clock)
        self.process = context.Process(target=serve, args=args, daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, what, timeout):
        """The answer, or raises Missing: it said why not, died, or took longer than `timeout`."""
        try:
            self.pipe.send(what)
            if not self.pipe.poll(timeout):
                raise Missing(f"took more than {timeout:.0f} s")
            answer = self.pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise Missing("the process died, most likely for want of memory") from None
        if isinstance(answer, str):
            raise Missing(answer)
        return answer

    def start(self, timeout):
        """A dict: value, gradient (one vector), peak in bytes, seconds to build and run once."""
        return self.ask("start", timeout)

    def run(self, timeout):
        self.times.append(self.ask("run", timeout))

    def stop(self):
        self.process.kill()
        self.process.join()


def serve(pipe, name, problem, steps, dtype, threads, limit, clock):
    clock = time.perf_counter if clock == "wall" else time.process_time
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        pipe.recv()
        found, run = first(name, problem, steps, dtype, threads)
        pipe.send(found)
        while pipe.recv() == "run":
            began = clock()
            run()
            pipe.send(clock() - began)
    except Missing as error:
        pipe.send(str(error))
    except MemoryError:
        pipe.send(f"needs more than the {limit / 2**30:.0f} GiB it may have")
    except RuntimeError as error:
        text = str(error)
        if "memory" not in text.lower() and "alloc" not in text.lower():
            raise
        pipe.send(f"needs more than the {limit / 2**30:.0f} GiB it may have")


def first(name, problem, steps, dtype, threads):
    from peers.problems import PROBLEMS

    module = module_of(name)
    if why := getattr(module, "SKIPPED", {}).get(problem):
        raise Missing(why)
    module.setup(dtype, threads)
    began = time.perf_counter()
    run = module.build(PROBLEMS[problem](steps, dtype), name)
    if name == "torch-compile":  # which compiles at the first call
        run()
    before = held()
    value, gradient = run()
    found = {"peak": peak() - before, "build": time.perf_counter() - began}
    if steps > PROBLEMS[problem].compared:
        short = PROBLEMS[problem](PROBLEMS[problem].compared, dtype)
        value, gradient = module.build(short, name)()
    parts = [np.asarray(gradient[k], np.float64).ravel() for k in sorted(gradient)]
    vector = np.concatenate(parts) if parts else None
    return found | {"value": float(value), "gradient": vector}, run


def held():
    """Bytes resident now; the peak is forgotten where the kernel can do that."""
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return status("VmRSS") if sys.platform == "linux" else peak()


def peak():
    if sys.platform == "linux":
        return status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def status(field):
    with open("/proc/self/status") as file:
        return next(1024 * int(s.split()[1]) for s in file if s.startswith(field + ":"))
