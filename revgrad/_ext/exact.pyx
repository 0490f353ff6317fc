# cython: language_level=3
"""Loops over ratio.h; every function has its twin, and its specification, in reference.py."""

from libc.stdint cimport int64_t, uint16_t, uint32_t

from revgrad._ext.reference import check_count, check_ratio, check_sizes, empty_buffer

cdef extern from "ratio.h" nogil:
    int ratio_usable(int64_t n, int64_t d) noexcept
    int64_t ratio_multiply(int64_t *x, uint32_t *head, int64_t n, int64_t d,
                           uint16_t *words, int64_t count) noexcept
    int64_t ratio_divide(int64_t *x, uint32_t *head, int64_t n, int64_t d,
                         const uint16_t *words, int64_t count) noexcept
    int fixed_encode(double value, double scale, int64_t *out) noexcept
    int fixed_add(int64_t *x, int64_t v, int sign) noexcept

cdef fused real:
    float
    double


cdef class Column:
    """Numerators or denominators: one per element (step 1) or one for all (step 0)."""

    cdef const int64_t[::1] many
    cdef int64_t one
    cdef const int64_t *start
    cdef Py_ssize_t step

    def __cinit__(self, values):
        self.step = getattr(values, "ndim", 0)
        if self.step:
            self.many = values
            self.start = &self.many[0] if self.many.shape[0] else NULL
        else:
            self.one = values
            self.start = &self.one


cdef columns(n, d, Py_ssize_t size):
    """Both columns, once every ratio in them is known to be usable."""
    check_ratio(n, d, size, scalars_only=True)
    cdef Column ns = Column(n), ds = Column(d)
    cdef Py_ssize_t i
    cdef Py_ssize_t checked = size if ns.step or ds.step else 0
    for i in range(checked):
        if not ratio_usable(ns.start[i * ns.step], ds.start[i * ds.step]):
            check_ratio(ns.start[i * ns.step], ds.start[i * ds.step], size)
    return ns, ds


def multiply(int64_t[::1] x, uint32_t[::1] heads, n, d, uint16_t[::1] words, Py_ssize_t count):
    check_sizes(x.shape[0], heads.shape[0])
    check_count(count, words.shape[0], x.shape[0])
    cdef Column ns, ds
    ns, ds = columns(n, d, x.shape[0])
    cdef uint16_t *stack = &words[0] if words.shape[0] else NULL
    cdef Py_ssize_t i
    with nogil:
        for i in range(x.shape[0]):
            count = ratio_multiply(&x[i], &heads[i], ns.start[i * ns.step], ds.start[i * ds.step],
                                   stack, count)
    return count


def divide(int64_t[::1] x, uint32_t[::1] heads, n, d, const uint16_t[::1] words, Py_ssize_t count):
    check_sizes(x.shape[0], heads.shape[0])
    check_count(count, words.shape[0], 0)
    cdef Column ns, ds
    ns, ds = columns(n, d, x.shape[0])
    cdef const uint16_t *stack = &words[0] if words.shape[0] else NULL
    cdef Py_ssize_t i, failed = -1
    cdef int64_t left = count
    with nogil:
        for i in range(x.shape[0] - 1, -1, -1):
            left = ratio_divide(&x[i], &heads[i], ns.start[i * ns.step], ds.start[i * ds.step],
                                stack, left)
            if left < 0:
                failed = i
                break
        if failed >= 0:
            redo(x, heads, ns, ds, failed + 1)
    if failed >= 0:
        raise empty_buffer(failed)
    return left


cdef void redo(int64_t[::1] x, uint32_t[::1] heads, Column ns, Column ds,
               Py_ssize_t start) noexcept nogil:
    """Multiply the elements from start on again: the words they spill are still on the stack."""
    cdef uint16_t again
    cdef Py_ssize_t i
    for i in range(start, x.shape[0]):
        ratio_multiply(&x[i], &heads[i], ns.start[i * ns.step], ds.start[i * ds.step],
                       &again, 0)


def add_floats(int64_t[::1] x, delta, int fraction_bits, int sign):
    check_sizes(x.shape[0], len(delta))
    if delta.dtype.char == "f":
        return add_reals[float](x, delta, 2.0 ** fraction_bits, sign)
    return add_reals[double](x, delta, 2.0 ** fraction_bits, sign)


cdef Py_ssize_t add_reals(int64_t[::1] x, const real[::1] delta, double scale, int sign):
    cdef Py_ssize_t i, failed = -1
    cdef int64_t v = 0
    with nogil:
        for i in range(x.shape[0]):
            if not (fixed_encode(delta[i], scale, &v) and fixed_add(&x[i], v, sign)):
                failed = i
                break
        for i in range(failed):  # take back what was added: nothing here can overflow
            fixed_encode(delta[i], scale, &v)
            fixed_add(&x[i], v, -sign)
    return failed


def encode(values, int fraction_bits, int64_t[::1] out):
    check_sizes(out.shape[0], len(values))
    if values.dtype.char == "f":
        return encode_reals[float](values, 2.0 ** fraction_bits, out)
    return encode_reals[double](values, 2.0 ** fraction_bits, out)


cdef Py_ssize_t encode_reals(const real[::1] values, double scale, int64_t[::1] out):
    cdef Py_ssize_t i
    with nogil:
        for i in range(out.shape[0]):
            if not fixed_encode(values[i], scale, &out[i]):
                return i
    return -1


def decode(const int64_t[::1] x, int fraction_bits, out):
    check_sizes(x.shape[0], len(out))
    if out.dtype.char == "f":
        decode_reals[float](x, 2.0 ** -fraction_bits, out)
    else:
        decode_reals[double](x, 2.0 ** -fraction_bits, out)


cdef decode_reals(const int64_t[::1] x, double ulp, real[::1] out):
    cdef Py_ssize_t i
    with nogil:
        for i in range(x.shape[0]):
            out[i] = <real>(<double>x[i] * ulp)
