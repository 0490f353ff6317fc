"""The compiled kernel, and nothing else: metadata live in pyproject.toml.

REVGRAD_CHECKED=1 builds it with bounds and overflow checks, for tests.
"""

import os

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

CHECKED = os.environ.get("REVGRAD_CHECKED") == "1"
# lanes wrap; the rest keeps the bits equal across instruction sets and lets rint vectorise
FLAGS = ["-O3", "-fwrapv", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
DIRECTIVES = {
    "boundscheck": CHECKED,
    "wraparound": False,
    "initializedcheck": CHECKED,
    "overflowcheck": CHECKED,
    "cdivision": False,
    "embedsignature": True,
}

kernel = Extension(
    "revgrad._ext.exact",
    sources=["revgrad/_ext/exact.pyx"],
    include_dirs=["revgrad/_ext"],
    depends=[f"revgrad/_ext/{name}.h" for name in ("ratio", "lanes", "blocks", "kernels")],
    extra_compile_args=[] if os.name == "nt" else [*FLAGS, *(["-g"] if CHECKED else [])],
)

chains = Extension(
    "revgrad._ext.chains",
    sources=["revgrad/_ext/chains.pyx"],
    include_dirs=["revgrad/_ext", numpy.get_include()],
    depends=["revgrad/_ext/sums.h"],
    extra_compile_args=[] if os.name == "nt" else ["-O3", "-ffp-contract=off"],
)

# force: the directives are no part of what cythonize compares
setup(ext_modules=cythonize([kernel, chains], compiler_directives=DIRECTIVES, force=True))
