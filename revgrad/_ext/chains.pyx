"""Chains of NumPy's own elementwise loops, run block by block so that they stay in cache.

The loops are those that NumPy's ufuncs call, taken from the ufunc objects, so the bits are NumPy's
on every machine; what is saved is dispatch and trips to memory.
"""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import numpy as np

cimport numpy as cnp

cnp.import_array()
cnp.import_ufunc()

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

cdef enum:
    MOST = 4  # operands of a ufunc in a chain: at most three in, one out

cdef struct Step:
    Loop loop
    void *data
    int count
    int slots[MOST]


def loop_index(ufunc, kinds):
    """Which of a ufunc's loops takes exactly these type characters; -1 if none does."""
    for k, types in enumerate(ufunc.types):
        if types.replace("->", "") == kinds:
            return k
    return -1


cdef class Chain:
    """steps: (ufunc, loop index, slots of its operands); run in order on every block.

    A slot is what an operand is: "array", contiguous, a block of it at a time; "tile", an array of
    a few entries repeated along the block; "scalar"; "constant", a scalar given once in `constants`
    by slot; "scratch", a block of memory that stays here.
    size: entries of each array; block: entries at a time, a multiple of every tile's period.
    """

    cdef Step *steps
    cdef char **base
    cdef cnp.npy_intp *advance
    cdef cnp.npy_intp *stride
    cdef cnp.npy_intp size, block
    cdef int count, slots
    cdef list kinds, memory

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
        self.kinds, self.memory = list(kinds), [None] * self.slots
        for i, (function, index, slots) in enumerate(steps):
            ufunc = <UFunc *><void *>function
            if not 0 <= index < ufunc.ntypes or ufunc.nargs != len(slots) or ufunc.nargs > MOST:
                raise ValueError(f"{function} has no loop {index} on {len(slots)} operands.")
            self.steps[i].loop, self.steps[i].data = ufunc.functions[index], ufunc.data[index]
            self.steps[i].count = ufunc.nargs
            for j in range(ufunc.nargs):
                self.steps[i].slots[j] = slots[j]
        for i, kind in enumerate(self.kinds):
            single = kind in ("scalar", "constant")
            self.stride[i] = 0 if single else itemsize
            self.advance[i] = itemsize if kind == "array" else 0
            if kind != "array":
                self.memory[i] = np.full(1 if single else block, constants.get(i, 0), dtype)
                self.base[i] = <char *>cnp.PyArray_DATA(self.memory[i])

    def __dealloc__(self):
        free(self.steps)
        free(self.base)
        free(self.advance)
        free(self.stride)

    def __call__(self, *operands):
        """Run on operands, one for each array, tile and scalar slot, in order."""
        cdef int i, k = 0
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
                if kind == "array":
                    self.base[i] = <char *>cnp.PyArray_DATA(array)
                else:
                    period, at = cnp.PyArray_NBYTES(array), 0
                    while period and at < self.block * self.stride[i]:
                        memcpy(self.base[i] + at, cnp.PyArray_DATA(array), period)
                        at += period
            k += 1
        with nogil:
            self._run()

    cdef void _run(self) noexcept nogil:
        cdef cnp.npy_intp start = 0, length
        cdef cnp.npy_intp strides[MOST]
        cdef char *operands[MOST]
        cdef int i, j, slot
        while start < self.size:
            length = min(self.block, self.size - start)
            for i in range(self.count):
                for j in range(self.steps[i].count):
                    slot = self.steps[i].slots[j]
                    operands[j] = self.base[slot] + start * self.advance[slot]
                    strides[j] = self.stride[slot]
                self.steps[i].loop(operands, &length, strides, self.steps[i].data)
            start += length
