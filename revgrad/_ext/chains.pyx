"""Chains of NumPy's own elementwise loops, run block by block so that they stay in cache.

The loops are those that NumPy's ufuncs call, taken from the ufunc objects, so the bits are NumPy's
on every machine; what is saved is dispatch and trips to memory.
"""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import sys
import warnings

import numpy as np

cimport numpy as cnp

cnp.import_array()
cnp.import_ufunc()

cdef extern from "<fenv.h>" nogil:
    int FE_DIVBYZERO, FE_OVERFLOW, FE_UNDERFLOW, FE_INVALID
    int REPORTED "(FE_DIVBYZERO | FE_OVERFLOW | FE_UNDERFLOW | FE_INVALID)"
    int feclearexcept(int)
    int fetestexcept(int)

cdef extern from "numpy/ufuncobject.h":
    ctypedef void (*Loop "PyUFuncGenericFunction")(
        char **, cnp.npy_intp *, cnp.npy_intp *, void *) noexcept nogil
    ctypedef struct UFunc "PyUFuncObject":
        int nin
        int nargs
        int ntypes
        Loop *functions
        void **data
        char *types

cdef extern from "sums.h" nogil:
    double dot_float(float *x, float *y, cnp.npy_intp n)
    double dot_double(double *x, double *y, cnp.npy_intp n)
    double total_float(float *x, cnp.npy_intp n)
    double total_double(double *x, cnp.npy_intp n)

cdef enum:
    MOST = 4  # operands of a ufunc in a chain: at most three in, one out

cdef struct Step:
    Loop loop  # NULL: the sum of the first operand, or of the product of two, into the last
    void *data
    int count
    int slots[MOST]
    int flags  # what the processor reported of it


def loop_index(ufunc, kinds):
    """Which of a ufunc's loops takes exactly these type characters; -1 if none does."""
    for k, types in enumerate(ufunc.types):
        if types.replace("->", "") == kinds:
            return k
    return -1


# The processor's flag, np.errstate's key, what NumPy says, and its own flag; in its order.
FLAGS = (
    (FE_DIVBYZERO, "divide", "divide by zero", 1),
    (FE_OVERFLOW, "over", "overflow", 2),
    (FE_UNDERFLOW, "under", "underflow", 4),
    (FE_INVALID, "invalid", "invalid value", 8),
)


def _report(name, flags):
    """What np.errstate asks for after a ufunc of this name that left these flags."""
    wanted, flagged = np.geterr(), [row for row in FLAGS if flags & row[0]]
    for _, key, what, _ in flagged:
        message, mode = f"{what} encountered in {name}", wanted[key]
        if mode == "raise":
            raise FloatingPointError(message)
        if mode == "warn":
            warnings.warn(message, RuntimeWarning, stacklevel=1)
        elif mode == "call":
            np.geterrcall()(what, sum(number for *_, number in flagged))
        elif mode == "log":
            np.geterrcall().write(f"Warning: {message}\n")
        elif mode == "print":
            print(f"Warning: {message}", file=sys.stderr)


cdef class Chain:
    """steps: (ufunc, loop index, slots of its operands); run in order on every block.

    A step without a ufunc, (None, 0, slots), adds up the entries of an operand, or of the product
    of two, into the slot that comes last. It is not NumPy's sum, and has other last bits; a chain
    with such steps says nothing of overflow and the like either.
    A slot is what an operand is: "array", contiguous, a block of it at a time; "tile", an array of
    a few entries repeated along the block; "scalar"; "constant", a scalar given once in `constants`
    by slot; "scratch", a block of memory that stays here; "sum", a 0-d array of float64.
    size: entries of each array; block: entries at a time, a multiple of every tile's period.
    """

    cdef Step *steps
    cdef char **base
    cdef cnp.npy_intp *advance
    cdef cnp.npy_intp *stride
    cdef cnp.npy_intp size, block
    cdef int count, slots, single, silent
    cdef list kinds, memory, names

    def __cinit__(self, steps, kinds, constants, size, block, dtype):
        cdef int i, j, itemsize = np.dtype(dtype).itemsize
        cdef UFunc *ufunc
        self.count, self.slots, self.size, self.block = len(steps), len(kinds), size, block
        self.steps = <Step *>calloc(max(1, self.count), sizeof(Step))
        self.base = <char **>calloc(max(1, self.slots), sizeof(char *))
        self.advance = <cnp.npy_intp *>calloc(max(1, self.slots), sizeof(cnp.npy_intp))
        self.stride = <cnp.npy_intp *>calloc(max(1, self.slots), sizeof(cnp.npy_intp))
        if not (self.steps and self.base and self.advance and self.stride):
            raise MemoryError()
        self.single, self.silent = itemsize == sizeof(float), 0
        self.names = [getattr(function, "__name__", "sum") for function, *_ in steps]
        self.kinds, self.memory = list(kinds), [None] * self.slots
        for i, (function, index, slots) in enumerate(steps):
            self.steps[i].count = len(slots)
            for j in range(min(MOST, len(slots))):
                self.steps[i].slots[j] = slots[j]
            if function is None:
                if not 2 <= len(slots) <= 3 or self.kinds[slots[len(slots) - 1]] != "sum":
                    raise ValueError(f"no sum goes over {len(slots)} slots, {slots}.")
                self.silent = 1
                continue
            ufunc = <UFunc *><void *>function
            if not 0 <= index < ufunc.ntypes or ufunc.nargs != len(slots) or ufunc.nargs > MOST:
                raise ValueError(f"{function} has no loop {index} on {len(slots)} operands.")
            self.steps[i].loop, self.steps[i].data = ufunc.functions[index], ufunc.data[index]
        for i, kind in enumerate(self.kinds):
            single = kind in ("scalar", "constant")
            self.stride[i] = 0 if single else itemsize
            self.advance[i] = itemsize if kind == "array" else 0
            if kind not in ("array", "sum"):
                self.memory[i] = np.full(1 if single else block, constants.get(i, 0), dtype)
                self.base[i] = <char *>cnp.PyArray_DATA(self.memory[i])

    def __dealloc__(self):
        free(self.steps)
        free(self.base)
        free(self.advance)
        free(self.stride)

    def __call__(self, *operands):
        """Run on operands, one for each array, tile, scalar and sum slot, in order."""
        cdef int i, reported, k = 0
        cdef cnp.ndarray array
        cdef cnp.npy_intp period, at
        for i in range(self.slots):
            kind = self.kinds[i]
            if kind == "scratch" or kind == "constant":
                continue
            if kind == "scalar":
                self.memory[i][0] = operands[k]
            else:
                array = operands[k]
                if kind == "array" or kind == "sum":
                    self.base[i] = <char *>cnp.PyArray_DATA(array)
                else:
                    period, at = cnp.PyArray_NBYTES(array), 0
                    while period and at < self.block * self.stride[i]:
                        memcpy(self.base[i] + at, cnp.PyArray_DATA(array), period)
                        at += period
            k += 1
        with nogil:
            reported = self._run()
        if reported:
            for i in range(self.count):
                if self.steps[i].flags:
                    _report(self.names[i], self.steps[i].flags)

    cdef int _run(self) noexcept nogil:
        cdef cnp.npy_intp start = 0, length
        cdef cnp.npy_intp strides[MOST]
        cdef char *operands[MOST]
        cdef int i, j, slot, reported = 0
        for i in range(self.count):
            self.steps[i].flags = 0
            if self.steps[i].loop == NULL:
                (<double *>self.base[self.steps[i].slots[self.steps[i].count - 1]])[0] = 0.0
        feclearexcept(REPORTED)
        while start < self.size:
            length = min(self.block, self.size - start)
            for i in range(self.count):
                for j in range(self.steps[i].count):
                    slot = self.steps[i].slots[j]
                    operands[j] = self.base[slot] + start * self.advance[slot]
                    strides[j] = self.stride[slot]
                if self.steps[i].loop == NULL:
                    self._add(operands, self.steps[i].count, length)
                else:
                    self.steps[i].loop(operands, &length, strides, self.steps[i].data)
                if not self.silent and fetestexcept(REPORTED):
                    reported = 1
                    self.steps[i].flags |= fetestexcept(REPORTED)
                    feclearexcept(REPORTED)
            start += length
        return reported

    cdef void _add(self, char **operands, int count, cnp.npy_intp length) noexcept nogil:
        cdef double *out = <double *>operands[count - 1]
        if count == 3 and self.single:
            out[0] += dot_float(<float *>operands[0], <float *>operands[1], length)
        elif count == 3:
            out[0] += dot_double(<double *>operands[0], <double *>operands[1], length)
        elif self.single:
            out[0] += total_float(<float *>operands[0], length)
        else:
            out[0] += total_double(<double *>operands[0], length)
