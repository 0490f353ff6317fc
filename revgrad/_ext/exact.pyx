# cython: language_level=3
"""The compiled kernel; every function has its twin, and its specification, in reference.py.

Arrays are contiguous. Loops run without the lock, in the best instruction set of this machine or
the one that REVGRAD_ISA names; all yield the same bits.
"""

import os

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t

from revgrad._ext.reference import check_count, check_ratio, check_sizes, empty_buffer

cdef extern from "kernels.h" nogil:
    int ratio_usable(int64_t n, int64_t d) noexcept
    int fixed_encode(double value, double scale, int64_t *out) noexcept
    int fixed_sum(int64_t x, int64_t v, int sign, int64_t *out) noexcept
    ctypedef struct columns:
        const uint32_t *n
        const uint32_t *d
        int n_many, d_many, usual, small
    int FROM_DOUBLES, FROM_FLOATS
    ctypedef struct real_source:
        const void *at
        double factor, ulp
        int kind
    int FUSED_BLOCK, FUSED_CONSTANT, FUSED_REGISTER, FUSED_DOUBLES, FUSED_FLOATS
    ctypedef struct fused_slot:
        int kind, at
        double value
        void *array
    ctypedef struct fused_operation:
        pass
    ctypedef struct fused_variable:
        int64_t *x
        double scale, ulp
    ctypedef struct fused_buffer:
        uint32_t *heads
        columns c
        uint16_t *words
        int64_t count
    ctypedef struct fused_program:
        const fused_operation *operations
        fused_slot *slots
        fused_variable *variables
        fused_buffer *buffers
        double *registers
        uint16_t *spare
        int64_t length
        int backwards
    ctypedef struct kernel_table:
        const char *name
        int64_t multiply(int64_t *x, uint32_t *heads, columns c, int64_t size, uint16_t *words,
                         int64_t count) noexcept nogil
        int64_t divide(int64_t *x, uint32_t *heads, columns c, int64_t size,
                       const uint16_t *words, int64_t count, int64_t *failed) noexcept nogil
        int add(int64_t *x, real_source reals, int64_t size, double scale, int sign) noexcept nogil
        void decode(const int64_t *x, double ulp, int64_t size, void *out,
                    int is_float) noexcept nogil
        int64_t fused(fused_program *p, int64_t lo, int64_t hi, int64_t *refused,
                      int64_t *element) noexcept nogil
    const kernel_table kernel_tables[]
    const char *COMPILED_BY
    int KERNEL_TABLES
    int kernel_runs(int k) noexcept
    int64_t first_unusable(columns c, int64_t size) noexcept
    void finish_columns(columns *c, int64_t size) noexcept
    int64_t count_pops_in "count_pops"(const int64_t *x, const uint32_t *heads, columns c,
                                       int64_t size) noexcept

cdef const kernel_table *table = &kernel_tables[0]
FUSED_ELEMENTS = FUSED_BLOCK
COMPILER = COMPILED_BY.decode()


def instruction_sets():
    """Names of those compiled in that this machine has, slowest first."""
    return [kernel_tables[k].name.decode() for k in range(KERNEL_TABLES) if kernel_runs(k)]


def instruction_set(name=None):
    """The one in use; with a name, that one from now on."""
    global table
    if name is not None:
        if name not in instruction_sets():
            raise ImportError(f"instruction set {name!r}; this machine runs {instruction_sets()}.")
        for k in range(KERNEL_TABLES):
            if kernel_tables[k].name.decode() == name:
                table = &kernel_tables[k]
    return table.name.decode()


instruction_set(os.environ.get("REVGRAD_ISA") or list(instruction_sets()).pop())


cdef class Ratios:
    """Numerators and denominators, checked: one of each, or one per element (uint32)."""

    cdef columns c
    cdef const uint32_t[::1] n_many, d_many
    cdef uint32_t n_one, d_one

    def __cinit__(self, n, d, Py_ssize_t size):
        for digits in (n, d):
            if getattr(digits, "ndim", 0):
                check_sizes(size, len(digits))
        self.c.n_many, self.c.d_many = getattr(n, "ndim", 0), getattr(d, "ndim", 0)
        if not (is_column(n) and is_column(d)):
            check_ratio(n, d, size)
        if self.c.n_many:
            self.n_many = np.ascontiguousarray(n, np.uint32)
            self.c.n = &self.n_many[0] if size else NULL
        else:
            self.n_one = n
            self.c.n = &self.n_one
        if self.c.d_many:
            self.d_many = np.ascontiguousarray(d, np.uint32)
            self.c.d = &self.d_many[0] if size else NULL
        else:
            self.d_one = d
            self.c.d = &self.d_one
        if not size:
            self.c.n_many = self.c.d_many = 0
            self.c.n = self.c.d = &self.n_one
            self.n_one = 1
        cdef int64_t bad = first_unusable(self.c, size)
        if bad >= 0:
            check_ratio(int(self.c.n[bad if self.c.n_many else 0]),
                        int(self.c.d[bad if self.c.d_many else 0]), size)
        finish_columns(&self.c, size)


cdef bint is_column(digits):
    """Whether digits are known to fit in 32 bits, so that C can check the rest."""
    if isinstance(digits, int):
        return 0 <= digits < 2 ** 32
    return getattr(digits, "dtype", None) == np.uint32 and digits.ndim == 1


def multiply(int64_t[::1] x, uint32_t[::1] heads, n, d, uint16_t[::1] words, Py_ssize_t count):
    cdef Py_ssize_t size = x.shape[0]
    check_sizes(size, heads.shape[0])
    check_count(count, words.shape[0], size)
    cdef Ratios ratios = Ratios(n, d, size)
    if size:
        with nogil:
            count = table.multiply(&x[0], &heads[0], ratios.c, size, &words[0], count)
    return count


def divide(int64_t[::1] x, uint32_t[::1] heads, n, d, const uint16_t[::1] words, Py_ssize_t count):
    cdef Py_ssize_t size = x.shape[0]
    check_sizes(size, heads.shape[0])
    check_count(count, words.shape[0], 0)
    cdef Ratios ratios = Ratios(n, d, size)
    cdef int64_t left = count, failed = -1
    cdef const uint16_t *stack = &words[0] if words.shape[0] else NULL
    if size:
        with nogil:
            left = table.divide(&x[0], &heads[0], ratios.c, size, stack, count, &failed)
        if failed >= 0:
            redo(x[failed + 1:], heads[failed + 1:], n, d, failed + 1)
            raise empty_buffer(failed)
    return left


def count_pops(const int64_t[::1] x, const uint32_t[::1] heads, n, d):
    cdef Py_ssize_t size = x.shape[0]
    check_sizes(size, heads.shape[0])
    cdef Ratios ratios = Ratios(n, d, size)
    cdef int64_t count = 0
    if size:
        with nogil:
            count = count_pops_in(&x[0], &heads[0], ratios.c, size)
    return count


def redo(int64_t[::1] x, uint32_t[::1] heads, n, d, start):
    """Multiply elements again: the words they spill are still on the stack."""
    n, d = (k[start:] if getattr(k, "ndim", 0) else k for k in (n, d))
    multiply(x, heads, n, d, np.empty(x.shape[0], np.uint16), 0)


cdef const void *address(reals):
    """Where a float32 or float64 vector begins."""
    cdef const float[::1] floats
    cdef const double[::1] doubles
    if not len(reals):
        return NULL
    if reals.dtype.char == "f":
        floats = reals
        return &floats[0]
    doubles = reals
    return &doubles[0]


cdef void *writable(reals):
    cdef float[::1] floats
    cdef double[::1] doubles
    if not len(reals):
        return NULL
    if reals.dtype.char == "f":
        floats = reals
        return &floats[0]
    doubles = reals
    return &doubles[0]


def add_floats(int64_t[::1] x, delta, int fraction_bits, int sign):
    cdef Py_ssize_t size = x.shape[0]
    check_sizes(size, len(delta))
    cdef real_source reals
    reals.at, reals.factor, reals.ulp = address(delta), 1.0, 0.0
    reals.kind = FROM_FLOATS if delta.dtype.char == "f" else FROM_DOUBLES
    cdef double scale = 2.0 ** fraction_bits
    cdef int bad = 0
    if size:
        with nogil:
            bad = table.add(&x[0], reals, size, scale, sign)
            if bad:
                table.add(&x[0], reals, size, scale, -sign)
    return first_refused(x, delta, scale, sign) if bad else -1


cdef Py_ssize_t first_refused(int64_t[::1] x, delta, double scale, int sign):
    """The first element whose delta or sum is no int64."""
    cdef int64_t v = 0
    cdef Py_ssize_t i
    for i in range(x.shape[0]):
        if not (fixed_encode(delta[i], scale, &v) and fixed_sum(x[i], v, sign, &v)):
            return i
    return -1


def encode(values, int fraction_bits, int64_t[::1] out):
    check_sizes(out.shape[0], len(values))
    out[:] = 0
    return add_floats(out, values, fraction_bits, 1)


def decode(const int64_t[::1] x, int fraction_bits, out):
    check_sizes(x.shape[0], len(out))
    cdef Py_ssize_t size = x.shape[0]
    cdef void *reals = writable(out)
    cdef int is_float = out.dtype.char == "f"
    cdef double ulp = 2.0 ** -fraction_bits
    if size:
        with nogil:
            table.decode(&x[0], ulp, size, reals, is_float)


cdef class Fused:
    """Operations of fused.py on blocks of vectors of one size; arrays are set, then `run`.

    operations: int32, seven columns as in kernels.h. kinds, registers: of the slots.
    """

    cdef fused_program p
    cdef fused_slot[64] slots
    cdef fused_variable[16] variables
    cdef fused_buffer[16] buffers
    cdef int32_t[:, ::1] operations
    cdef double[::1] registers
    cdef uint16_t[::1] spare
    cdef list held
    cdef Py_ssize_t size

    def __init__(self, operations, kinds, registers, Py_ssize_t size, bint backwards):
        if len(kinds) > 64:
            raise ValueError(f"{len(kinds)} operands; at most 64 fit.")
        self.operations, self.size, self.held = operations, size, [None] * 112
        self.registers = np.zeros((max(registers, default=0) + 1) * FUSED_BLOCK)
        self.spare = np.zeros(FUSED_BLOCK, np.uint16)
        for k, (kind, register) in enumerate(zip(kinds, registers, strict=True)):
            self.slots[k].kind, self.slots[k].at = kind, register
        self.p.operations = <const fused_operation *>&self.operations[0, 0]
        self.p.slots, self.p.variables, self.p.buffers = self.slots, self.variables, self.buffers
        self.p.registers, self.p.spare = &self.registers[0], &self.spare[0]
        self.p.length, self.p.backwards = len(operations), backwards

    def constant(self, int k, double value):
        self.slots[k].value = value

    def array(self, int k, reals):
        check_sizes(self.size, len(reals))
        self.held[k] = reals
        self.slots[k].array = writable(reals) if reals.flags.writeable else <void *>address(reals)

    def variable(self, int k, int64_t[::1] x, int fraction_bits):
        check_sizes(self.size, x.shape[0])
        self.held[64 + k] = x
        self.variables[k].x = &x[0] if self.size else NULL
        self.variables[k].scale, self.variables[k].ulp = 2.0**fraction_bits, 2.0**-fraction_bits

    def buffer(self, int k, uint32_t[::1] heads, Ratios ratios):
        check_sizes(self.size, heads.shape[0])
        self.held[80 + k] = heads, ratios
        self.buffers[k].heads = &heads[0] if self.size else NULL
        self.buffers[k].c = ratios.c

    def words(self, int k, uint16_t[::1] words, Py_ssize_t count, Py_ssize_t room):
        check_count(count, words.shape[0], room)
        self.held[96 + k] = words
        self.buffers[k].words, self.buffers[k].count = &words[0] if words.shape[0] else NULL, count

    def count(self, int k):
        return self.buffers[k].count

    def run(self, Py_ssize_t lo, Py_ssize_t hi):
        """None, or (start of the block, operation, element or -2) that refused; elements before it
        (after it, backwards) are done, and the block up to that operation."""
        cdef int64_t refused = 0, element = -1, at
        if not 0 <= lo <= hi <= self.size:
            raise ValueError(f"elements {lo} to {hi} of {self.size}.")
        with nogil:
            at = table.fused(&self.p, lo, hi, &refused, &element)
        return None if at < 0 else (at, refused, element)
