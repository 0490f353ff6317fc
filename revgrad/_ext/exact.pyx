# cython: language_level=3
"""The compiled kernel; every function has its twin, and its specification, in reference.py.

Arrays are contiguous. Loops run without the lock, in the best instruction set of this machine or
the one that REVGRAD_ISA names; all yield the same bits.
"""

import os

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t

from revgrad._ext.reference import check_count, check_ratio, check_sizes, empty_buffer

cdef extern from "kernels.h" nogil:
    int ratio_usable(int64_t n, int64_t d) noexcept
    int fixed_encode(double value, double scale, int64_t *out) noexcept
    int fixed_sum(int64_t x, int64_t v, int sign, int64_t *out) noexcept
    ctypedef struct columns:
        const uint32_t *n
        const uint32_t *d
        const uint8_t *kinds
        int64_t offset
        int n_many, d_many, usual, small
    int KINDS
    columns columns_from(columns c, int64_t lo) noexcept
    int FROM_DOUBLES, FROM_FLOATS, BY_FACTOR
    ctypedef struct real_source:
        const void *at
        double factor, ulp
        int kind, how
        float *floats
        double *doubles
    int FUSED_BLOCK, FUSED_SLOTS, FUSED_VARIABLES
    int FUSED_CONSTANT, FUSED_REGISTER, FUSED_DOUBLES, FUSED_FLOATS
    ctypedef struct fused_slot:
        int kind, at, many
        const double *values
        void *array
    ctypedef struct fused_operation:
        pass
    ctypedef struct fused_variable:
        int64_t *x
        double scale, ulp
    ctypedef struct fused_buffer:
        uint32_t *heads
        columns c
        int by_segment
        uint16_t *words
        int64_t count
    ctypedef struct fused_program:
        const fused_operation *operations
        fused_slot *slots
        fused_variable *variables
        fused_buffer *buffers
        double *registers
        uint16_t *spare
        const int64_t *starts
        const int32_t *segments
        double *partials
        int64_t blocks, length
        int backwards
    ctypedef struct kernel_table:
        const char *name
        int64_t multiply(int64_t *x, uint32_t *heads, columns c, int64_t size, uint16_t *words,
                         int64_t count) noexcept nogil
        int64_t divide(int64_t *x, uint32_t *heads, columns c, int64_t size,
                       const uint16_t *words, int64_t count, int64_t *failed) noexcept nogil
        int64_t count_pops(const int64_t *x, const uint32_t *heads, columns c,
                           int64_t size) noexcept nogil
        int add(int64_t *x, real_source reals, int64_t size, double scale, int sign) noexcept nogil
        void decode(const int64_t *x, double ulp, int64_t size, void *out,
                    int is_float) noexcept nogil
        int64_t fused(fused_program *p, int64_t lo, int64_t hi, int64_t *refused,
                      int64_t *element) noexcept nogil
    const kernel_table kernel_tables[]
    const char *COMPILED_BY
    int KERNEL_TABLES
    int kernel_runs(int k) noexcept
    int64_t fill_columns(const int64_t *n, const int64_t *d, uint32_t *n_to, uint32_t *d_to,
                         int64_t size) noexcept
    int compare_columns(const int64_t *n, const int64_t *d, int64_t size) noexcept
    void finish_columns(columns *c, int64_t size, uint8_t *kinds) noexcept

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
    """Numerators and denominators, checked once: one of each, or one per element (as uint32).

    n, d: integers, or int64 or uint32 vectors, which are gone through chunk by chunk.
    """

    cdef columns c
    cdef readonly Py_ssize_t size  # 0 where one of each serves any number of elements
    cdef object held  # the vectors
    cdef uint32_t n_one, d_one

    def __cinit__(self):
        self.c.n, self.c.d = &self.n_one, &self.d_one

    def __init__(self, n, d, Py_ssize_t size):
        for digits in (n, d):
            if getattr(digits, "ndim", 0):
                check_sizes(size, len(digits))
        if not (getattr(n, "ndim", 0) or getattr(d, "ndim", 0)):
            check_ratio(n, d, size)
            self.n_one, self.d_one = n, d
            finish_columns(&self.c, 1, NULL)
        elif size:
            self._take(column_of(n, size), column_of(d, size), size)
        else:
            self.n_one = self.d_one = 1
            finish_columns(&self.c, 1, NULL)

    cdef _take(self, const int64_t[::1] n, const int64_t[::1] d, Py_ssize_t size):
        cdef uint32_t[::1] n_to = np.empty(size, np.uint32), d_to = np.empty(size, np.uint32)
        cdef uint8_t[::1] kinds = np.empty(-(-size // KINDS), np.uint8)
        cdef int64_t bad
        with nogil:
            self.c.n_many = self.c.d_many = 1
            self.c.n, self.c.d = &n_to[0], &d_to[0]
            bad = fill_columns(&n[0], &d[0], &n_to[0], &d_to[0], size)
            if bad < 0:
                finish_columns(&self.c, size, &kinds[0])
        if bad >= 0:
            check_ratio(n[bad], d[bad], size)
        if not self.c.n_many:
            self.n_one, self.c.n, n_to = n_to[0], &self.n_one, None
        if not self.c.d_many:
            self.d_one, self.c.d, d_to = d_to[0], &self.d_one, None
        self.size = size if self.c.n_many or self.c.d_many else 0
        self.held = n_to, d_to, kinds

    def part(self, Py_ssize_t lo, Py_ssize_t hi):
        """Those of elements lo to hi."""
        if not self.size:
            return self
        if not 0 <= lo <= hi <= self.size:
            raise ValueError(f"ratios {lo} to {hi} of {self.size}.")
        cdef Ratios part = Ratios.__new__(Ratios)
        part.c, part.size, part.held = columns_from(self.c, lo), hi - lo, self
        return part


cdef column_of(digits, Py_ssize_t size):
    return np.ascontiguousarray(np.broadcast_to(digits, size), np.int64)


def compare(const int64_t[::1] n, const int64_t[::1] d):
    """Whether all n and d are at least 1; all n/d usable; some n < d; some n > d."""
    check_sizes(n.shape[0], d.shape[0])
    cdef int seen = compare_columns(&n[0], &d[0], n.shape[0]) if n.shape[0] else 0
    return not seen & 1, not seen & 2, bool(seen & 4), bool(seen & 8)


def multiply(int64_t[::1] x, uint32_t[::1] heads, n, d, uint16_t[::1] words, Py_ssize_t count):
    return multiply_by(x, heads, Ratios(n, d, x.shape[0]), words, count)


def multiply_by(int64_t[::1] x, uint32_t[::1] heads, Ratios ratios, uint16_t[::1] words,
                Py_ssize_t count):
    cdef Py_ssize_t size = x.shape[0]
    check_sizes(size, heads.shape[0], ratios.size or size)
    check_count(count, words.shape[0], size)
    if size:
        with nogil:
            count = table.multiply(&x[0], &heads[0], ratios.c, size, &words[0], count)
    return count


def divide(int64_t[::1] x, uint32_t[::1] heads, n, d, const uint16_t[::1] words, Py_ssize_t count):
    return divide_by(x, heads, Ratios(n, d, x.shape[0]), words, count)


def divide_by(int64_t[::1] x, uint32_t[::1] heads, Ratios ratios, const uint16_t[::1] words,
              Py_ssize_t count):
    cdef Py_ssize_t size = x.shape[0]
    check_sizes(size, heads.shape[0], ratios.size or size)
    check_count(count, words.shape[0], 0)
    cdef int64_t left = count, failed = -1
    cdef const uint16_t *stack = &words[0] if words.shape[0] else NULL
    if size:
        with nogil:
            left = table.divide(&x[0], &heads[0], ratios.c, size, stack, count, &failed)
        if failed >= 0:
            start = failed + 1  # multiplied again, they spill words that are still on the stack
            multiply_by(x[start:], heads[start:], ratios.part(start, size),
                        np.empty(size - start, np.uint16), 0)
            raise empty_buffer(failed)
    return left


def count_pops(const int64_t[::1] x, const uint32_t[::1] heads, n, d):
    return count_pops_by(x, heads, Ratios(n, d, x.shape[0]))


def count_pops_by(const int64_t[::1] x, const uint32_t[::1] heads, Ratios ratios):
    cdef Py_ssize_t size = x.shape[0]
    check_sizes(size, heads.shape[0], ratios.size or size)
    cdef int64_t count = 0
    if size:
        with nogil:
            count = table.count_pops(&x[0], &heads[0], ratios.c, size)
    return count


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
    reals.how, reals.floats, reals.doubles = BY_FACTOR, NULL, NULL
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
    starts: of the blocks, and the end of the last; segments: int32, of each block. sums: how many.
    """

    cdef fused_program p
    cdef fused_slot[160] slots
    cdef fused_variable[16] variables
    cdef fused_buffer[16] buffers
    cdef double[160] numbers
    cdef int32_t[:, ::1] operations
    cdef double[::1] registers
    cdef double[:, ::1] partials
    cdef uint16_t[::1] spare
    cdef int64_t[::1] starts
    cdef int32_t[::1] segments
    cdef dict held
    cdef list stacks
    cdef Py_ssize_t[16] room
    cdef Py_ssize_t size, most

    def __init__(self, operations, kinds, registers, int64_t[::1] starts, int32_t[::1] segments,
                 Py_ssize_t sums, bint backwards):
        if len(kinds) > FUSED_SLOTS:
            raise ValueError(f"{len(kinds)} operands; at most {FUSED_SLOTS} fit.")
        check_sizes(starts.shape[0] - 1, segments.shape[0])
        self.operations, self.held, self.stacks = operations, {}, [None] * 16
        self.starts, self.segments, self.size = starts, segments, starts[starts.shape[0] - 1]
        self.most = max(segments, default=-1) + 1
        self.registers = np.zeros((max(registers, default=0) + 1) * FUSED_BLOCK)
        self.partials = np.zeros((sums, segments.shape[0]))
        self.spare = np.zeros(FUSED_BLOCK, np.uint16)
        for k, (kind, register) in enumerate(zip(kinds, registers, strict=True)):
            self.slots[k].kind, self.slots[k].at = kind, register
            self.slots[k].values = &self.numbers[k]
        self.p.operations = <const fused_operation *>&self.operations[0, 0]
        self.p.slots, self.p.variables, self.p.buffers = self.slots, self.variables, self.buffers
        self.p.registers, self.p.spare = &self.registers[0], &self.spare[0]
        self.p.starts = &self.starts[0]
        self.p.segments = &self.segments[0] if segments.shape[0] else NULL
        self.p.partials = &self.partials[0, 0] if self.partials.size else NULL
        self.p.blocks, self.p.length = segments.shape[0], len(operations)
        self.p.backwards = backwards

    def numbers_in(self, list slots, list values):
        """`constant` of several slots."""
        cdef int k
        for k, value in zip(slots, values):
            if type(value) is float:
                self.slots[k].many, self.numbers[k] = 0, value
                self.slots[k].values = &self.numbers[k]
            else:
                self.constant(k, value)

    def constant(self, int k, value):
        """One number for all, or a float64 vector of one per segment."""
        cdef const double[::1] values
        self.slots[k].many = getattr(value, "ndim", 0)
        if self.slots[k].many:
            values = self.held[k] = np.ascontiguousarray(value, np.float64)
            if values.shape[0] < self.most:
                raise ValueError(f"{values.shape[0]} numbers; pass one per segment.")
            self.slots[k].values = &values[0]
        else:
            self.numbers[k] = value
            self.slots[k].values = &self.numbers[k]

    def array(self, int k, reals):
        check_sizes(self.size, len(reals))
        self.held[k] = reals
        self.slots[k].array = writable(reals) if reals.flags.writeable else <void *>address(reals)

    def variable(self, int k, int64_t[::1] x, int fraction_bits):
        check_sizes(self.size, x.shape[0])
        self.held["variable", k] = x
        self.variables[k].x = &x[0] if self.size else NULL
        self.variables[k].scale, self.variables[k].ulp = 2.0**fraction_bits, 2.0**-fraction_bits

    def buffer(self, int k, uint32_t[::1] heads, Ratios ratios, bint by_segment):
        check_sizes(self.size, heads.shape[0])
        if ratios.size and not by_segment:
            check_sizes(self.size, ratios.size)
        elif ratios.size and ratios.size < self.most:
            raise ValueError(f"{ratios.size} ratios; pass one per segment.")
        self.held["buffer", k] = heads, ratios
        self.buffers[k].heads = &heads[0] if self.size else NULL
        self.buffers[k].c, self.buffers[k].by_segment = ratios.c, by_segment

    def words(self, int k, words, Py_ssize_t count, Py_ssize_t room):
        cdef uint16_t[::1] stack
        if self.stacks[k] is not words:
            stack = words
            self.stacks[k], self.room[k] = words, stack.shape[0]
            self.buffers[k].words = &stack[0] if stack.shape[0] else NULL
        self.buffers[k].count = count
        if not 0 <= count <= self.room[k] - room:
            check_count(count, self.room[k], room)

    def count(self, int k):
        return self.buffers[k].count

    def run(self, Py_ssize_t lo, Py_ssize_t hi):
        """None, or (block, operation, element or -2) that refused, for blocks lo to hi; those before
        it (after it, backwards) are done, and the block up to that operation."""
        cdef int64_t refused = 0, element = -1, at
        if not 0 <= lo <= hi <= self.segments.shape[0]:
            raise ValueError(f"blocks {lo} to {hi} of {self.segments.shape[0]}.")
        with nogil:
            at = table.fused(&self.p, lo, hi, &refused, &element)
        return None if at < 0 else (at, refused, element)

    def sums(self, Py_ssize_t segments):
        """The sums by segment, one row each; blocks are added in order."""
        cdef double[:, ::1] out = np.zeros((self.partials.shape[0], segments))
        cdef Py_ssize_t k, b
        for k in range(self.partials.shape[0]):
            for b in range(self.segments.shape[0]):
                out[k, self.segments[b]] += self.partials[k, b]
        return np.asarray(out)
