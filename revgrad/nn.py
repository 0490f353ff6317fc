"""Pure functions that networks are made of, and the initialisers of their weights.

Arrays are NumPy's (or of another type that answers its protocols); the answer has the dtype of the
first argument. Every function has derivatives of any order in both modes, and gives the same bits
every time, traced or not.

Images are (N, H, W, C), kernels (kh, kw, C, O), as in JAX. In memory the layers here keep images
with the batch last, (H, C, W, N), because that is fastest on BLAS: windows then move by whole
stretches of W * N numbers. An image that lies otherwise is copied once, on entering the first
layer; elementwise NumPy functions keep the order, and `reshape` or `flatten` leaves it.

Strides are a number or a pair (rows, columns). Padding is "valid" (none), "same" (the answer has
ceil(size / stride) rows and columns), a number, a pair (rows, columns), or two pairs
((top, bottom), (left, right)).
"""

import operator
from math import pi, prod, sqrt

import numpy as np
import optree

from revgrad.arrays import plain
from revgrad.rules import nn as rules
from revgrad.rules.row import cast, dtype_of, shape_of
from revgrad.tape import Box
from revgrad.transforms import stop_gradient

# Layers.


def dense(x, w, b=None):
    """x @ w + b.

    x: (..., inputs); w: (inputs, outputs); b: (outputs,) or None. Result: (..., outputs).
    """
    y = x @ w
    return y if b is None else y + b


def conv2d(x, w, b=None, *, stride=1, padding="valid"):
    """Convolution as networks mean it: the correlation of each window of x with each kernel.

    x: (N, H, W, C); w: (kh, kw, C, O); b: (O,) or None. Result: (N, rows, columns, O), where
    rows = (H + top + bottom - kh) // stride + 1. See the module for stride, padding and memory.
    Raises: ValueError where shapes do not fit.
    """
    (kh, kw, c, o), given = _axes(w, 4, "w", "(kh, kw, C, O)"), (x, w) if b is None else (x, w, b)
    _check_images(x, "conv2d")
    if shape_of(x)[3] != c or shape_of(given[-1])[-1] != o:
        raise ValueError(
            f"conv2d: x has {shape_of(x)[3]} channels and w takes {c}; w gives {o} and the bias, "
            f"if any, has shape {shape_of(b)}."
        )
    at = _windows(x, (kh, kw), stride, padding, "conv2d")
    dtype = np.result_type(*map(dtype_of, given))
    conv = rules.conv2d if b is None else rules.conv2d_bias
    return conv(*(cast(a, dtype) for a in given), **at)


def max_pool(x, window, *, stride=None, padding="valid"):
    """The largest entry of each window.

    x: (N, H, W, C); window: a number or a pair; stride: by default the window. Result:
    (N, rows, columns, C). Padding never wins. Of equal entries the first, row by row, has the
    derivative, as in PyTorch and JAX.
    """
    return rules.max_pool(x, **_pooling(x, window, stride, padding, "max_pool"))


def avg_pool(x, window, *, stride=None, padding="valid"):
    """The mean of each window, padding counted as zeros.

    x: (N, H, W, C); window: a number or a pair; stride: by default the window. Result:
    (N, rows, columns, C).
    """
    at = _pooling(x, window, stride, padding, "avg_pool")
    return rules.sum_pool(x, **at) * (1 / prod(at["window"]))


def batch_norm(x, scale, bias, running=None, *, train=True, momentum=0.1, eps=1e-5):
    """Normalise each channel to mean 0 and variance 1, then scale and shift: (y, running).

    x: (..., C); scale, bias: (C,). In training the mean and variance of x over all axes but the
    last are used, and `running`, a pair (mean, var) of (C,) or None for (0, 1), returns moved
    towards them by `momentum`, without derivative; var is then the unbiased one (all as in
    PyTorch). With train=False `running` is used and returned as it came.
    Make `running` part of the loss's aux; it is data, not a parameter.
    Raises: ValueError in training with fewer than two values per channel.
    """
    *batch, channels = shape_of(x)
    if running is None:
        running = tuple(make(plain(x), shape=(channels,)) for make in (np.zeros_like, np.ones_like))
    if not train:
        mean, var = running
        return (x - mean) * (scale / np.sqrt(var + eps)) + bias, running
    axes, count = tuple(range(len(batch))), prod(batch)
    if count < 2:
        raise ValueError(
            f"batch_norm: x of shape {shape_of(x)} has {count} values per channel; training needs "
            "two or more. Use train=False."
        )
    mean = np.mean(x, axis=axes)
    centred = x - mean
    var = np.mean(centred * centred, axis=axes)
    y = centred * (scale / np.sqrt(var + eps)) + bias
    found = stop_gradient((mean, var * (count / (count - 1))))
    return y, tuple(old + momentum * (new - old) for old, new in zip(running, found, strict=True))


def embedding(table, ids):
    """Rows of a table: (rows, ...), (...) integers -> ids.shape + table.shape[1:].

    Negative ids count from the end. Cotangents of a row that was looked up more than once are added
    in an order that the ids alone decide.
    """
    if not _is_integer(ids):
        raise TypeError(f"embedding: ids are {dtype_of(ids)}; integers are wanted.")
    return rules.lookup(table, ids)


def dropout(x, rate, key):
    """x with each entry zeroed with probability `rate`, and the others divided by 1 - rate.

    key: an integer or a tuple of integers, such as (seed, step, layer). The mask depends on key
    and x.shape alone (Philox, counter-based), so that a step met again has the mask it had. Use a
    key once; leave dropout out when not training.
    Raises: ValueError for a rate outside [0, 1); TypeError for a traced one, whose derivative the
    mask would not have.
    """
    if isinstance(rate, Box):
        raise TypeError("dropout: rate is traced, but a mask has no derivative; pass a number.")
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: rate is {rate}; a number from 0 to below 1 is wanted.")
    key = key if isinstance(key, (tuple, list)) else (key,)
    return x * rules.dropout_mask(x, *key, rate=float(rate))


# Recurrence.


def lstm_cell(params, state, x):
    """One step of an LSTM: (state, output), for `scan`.

    params: {"input": (inputs, 4 hidden), "recurrent": (hidden, 4 hidden), "bias": (4 hidden,)};
    the four are, in PyTorch's order, the input, forget, cell and output gates.
    state: (hidden state, cell state), each (N, hidden); x: (N, inputs). Output: the hidden state.
    Source: Hochreiter & Schmidhuber 1997; Gers et al. 2000 (forget gate).
    """
    h, c = state
    gates = x @ params["input"] + h @ params["recurrent"] + params["bias"]
    i, f, g, o = rules.split(gates, parts=4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (h, c), h


def gru_cell(params, state, x):
    """One step of a gated recurrent unit: (state, output), for `scan`.

    params: {"input": (inputs, 3 hidden), "recurrent": (hidden, 3 hidden), "bias": (3 hidden,),
    "recurrent_bias": (3 hidden,)}; the three are, in PyTorch's order, the reset gate, the update
    gate and the candidate, whose recurrent part, bias included, the reset gate multiplies.
    state: (N, hidden); x: (N, inputs). Output: the state.
    Source: Cho et al. 2014, with the reset gate after the product.
    """
    r, z, n = rules.split(x @ params["input"] + params["bias"], parts=3)
    hr, hz, hn = rules.split(state @ params["recurrent"] + params["recurrent_bias"], parts=3)
    z = sigmoid(z + hz)
    n = np.tanh(n + sigmoid(r + hr) * hn)
    state = n + z * (state - n)
    return state, state


def scan(cell, params, state, inputs):
    """Run a cell over time: (last state, outputs).

    cell(params, state, x) -> (state, output); state and output: any trees of arrays.
    inputs: a tree of arrays with one leading axis, time; outputs are stacked on such an axis.
    Raises: ValueError where the leading axes differ or there is no step.
    """
    leaves, tree = optree.tree_flatten(inputs)
    steps = {shape_of(x)[:1] for x in leaves}
    if len(steps) != 1 or () in steps or (0,) in steps:
        raise ValueError(
            f"scan: the inputs have shapes {[shape_of(x) for x in leaves]}; one leading axis in "
            "common, of one step or more, is wanted."
        )
    outputs = []
    for now in zip(*map(rules.unstack, leaves), strict=True):
        state, output = cell(params, state, optree.tree_unflatten(tree, now))
        outputs.append(output)
    return state, optree.tree_map(lambda *ys: rules.stack(*ys), *outputs)


# Entry by entry.


def relu(x):
    """max(x, 0); the derivative at 0 is 0."""
    return rules.relu(x, 0)


def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow."""
    return rules.sigmoid(x)


def softplus(x):
    """log(1 + exp(x)), without overflow."""
    return rules.softplus(x)


def gelu(x, approximate=True):
    """x times the normal distribution function of x.

    approximate: by tanh, as JAX does by default; otherwise exactly (needs SciPy), as PyTorch does.
    """
    if approximate:
        return 0.5 * x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + rules.erf(x * sqrt(0.5)))


# Classes and losses.


def logsumexp(x, axis=-1, *, keepdims=False):
    """log(sum(exp(x))) along an axis, without overflow; -inf where all of x is."""
    top = stop_gradient(np.max(x, axis=axis, keepdims=True))
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        out = np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top
    return out if keepdims else np.squeeze(out, axis)


def log_softmax(logits, axis=-1):
    """log(softmax(logits)) along an axis, without overflow; shape and dtype of logits."""
    shifted = logits - stop_gradient(np.max(logits, axis=axis, keepdims=True))
    return shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))


def softmax(logits, axis=-1):
    """exp(logits), scaled to sum to 1 along an axis, without overflow; shape and dtype as given."""
    raised = np.exp(logits - stop_gradient(np.max(logits, axis=axis, keepdims=True)))
    return raised / np.sum(raised, axis=axis, keepdims=True)


def softmax_cross_entropy(logits, targets):
    """Mean negative log-likelihood: a scalar, in nats.

    logits: (..., classes). targets: probabilities of that shape (one-hot rows, say), or integer
    labels of shape (...).
    """
    *batch, classes = shape_of(logits)
    if _is_integer(targets) and shape_of(targets) == tuple(batch):
        targets = rules.one_hot(targets, logits, classes=classes)
    elif shape_of(targets) != shape_of(logits):
        raise ValueError(
            f"softmax_cross_entropy: logits of shape {shape_of(logits)} and {dtype_of(targets)} "
            f"targets of shape {shape_of(targets)}; pass probabilities of the logits' shape, or "
            f"integer labels of shape {tuple(batch)}."
        )
    total = np.sum(cast(targets, dtype_of(logits)) * log_softmax(logits))
    return -total / max(1, prod(batch))


def mean_squared_error(predictions, targets):
    """Mean of (predictions - targets)**2 over all entries: a scalar. Equal shapes are wanted."""
    if shape_of(predictions) != shape_of(targets):
        raise ValueError(
            f"mean_squared_error: predictions {shape_of(predictions)} and targets "
            f"{shape_of(targets)} differ in shape; reshape one, lest they broadcast."
        )
    return np.mean(np.square(predictions - cast(targets, dtype_of(predictions))))


# Initial weights: (generator, shape) -> array. The last axis of a shape is what a layer puts out,
# the last but one what it takes in, and the axes before (a kernel's) multiply both. Numbers are
# drawn in float64 and then cast, so that every dtype starts from the same weights.


def normal(rng, shape, dtype=np.float32, *, scale=1.0):
    """Normal numbers of standard deviation `scale`. rng: a numpy.random.Generator."""
    return (scale * rng.standard_normal(shape)).astype(dtype)


def uniform(rng, shape, dtype=np.float32, *, scale=1.0):
    """Uniform numbers in [-scale, scale). rng: a numpy.random.Generator."""
    return (scale * rng.uniform(-1, 1, shape)).astype(dtype)


def orthogonal(rng, shape, dtype=np.float32, *, scale=1.0):
    """Orthogonal columns (or rows, if those are fewer) of length `scale`; axes before the last as
    one. rng: a numpy.random.Generator. Source: Saxe et al. 2014.
    """
    rows, columns = _two_axes(shape)
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    q = q * np.where(np.diagonal(r) < 0, -1, 1)
    return (scale * np.reshape(q if rows >= columns else q.T, shape)).astype(dtype)


def glorot_normal(rng, shape, dtype=np.float32):
    """Normal with variance 2 / (fan in + fan out). Source: Glorot & Bengio 2010."""
    return normal(rng, shape, dtype, scale=sqrt(2 / sum(_fans(shape))))


def glorot_uniform(rng, shape, dtype=np.float32):
    """Uniform with variance 2 / (fan in + fan out). Source: Glorot & Bengio 2010."""
    return uniform(rng, shape, dtype, scale=sqrt(6 / sum(_fans(shape))))


def he_normal(rng, shape, dtype=np.float32):
    """Normal with variance 2 / fan in, for layers before a relu. Source: He et al. 2015."""
    return normal(rng, shape, dtype, scale=sqrt(2 / _fans(shape)[0]))


def he_uniform(rng, shape, dtype=np.float32):
    """Uniform with variance 2 / fan in, for layers before a relu. Source: He et al. 2015."""
    return uniform(rng, shape, dtype, scale=sqrt(6 / _fans(shape)[0]))


def lecun_normal(rng, shape, dtype=np.float32):
    """Normal with variance 1 / fan in. Source: LeCun et al. 1998."""
    return normal(rng, shape, dtype, scale=sqrt(1 / _fans(shape)[0]))


def lecun_uniform(rng, shape, dtype=np.float32):
    """Uniform with variance 1 / fan in. Source: LeCun et al. 1998."""
    return uniform(rng, shape, dtype, scale=sqrt(3 / _fans(shape)[0]))


xavier_normal, xavier_uniform = glorot_normal, glorot_uniform
kaiming_normal, kaiming_uniform = he_normal, he_uniform


def _two_axes(shape):
    if len(shape) < 2:
        raise ValueError(f"shape {tuple(shape)} has no fan in; two axes or more are wanted.")
    return max(1, prod(shape[:-1])), max(1, shape[-1])


def _fans(shape):
    """How many numbers an output sees, and how many an input reaches."""
    _two_axes(shape)
    kernel = prod(shape[:-2])
    return max(1, kernel * shape[-2]), max(1, kernel * shape[-1])


# What came.


def _is_integer(x):
    return dtype_of(x).kind in "iu"


def _axes(x, count, name, like):
    if len(shape_of(x)) != count:
        raise ValueError(f"{name} has shape {shape_of(x)}; {like} is wanted.")
    return shape_of(x)


def _check_images(x, name):
    _axes(x, 4, f"{name}: x", "(N, H, W, C)")


def _pooling(x, window, stride, padding, name):
    _check_images(x, name)
    window = _pair(window, f"{name}: window", 1)
    at = _windows(x, window, window if stride is None else stride, padding, name)
    for pads, k in zip(at["padding"], window, strict=True):
        if max(pads) >= k:
            raise ValueError(f"{name}: padding {pads} makes windows of {k} that see nothing else.")
    return {**at, "window": window}


def _windows(x, window, stride, padding, name):
    """Stride and padding as the primitives take them."""
    size, stride = shape_of(x)[1:3], _pair(stride, f"{name}: stride", 1)
    padding = _padding(padding, size, window, stride, name)
    if min(rules.out_shape(size, window, stride, padding)) < 1:
        raise ValueError(f"{name}: a window of {window} is larger than x {size} padded {padding}.")
    return {"stride": stride, "padding": padding}


def _padding(padding, size, window, stride, name):
    if padding == "valid":
        padding = 0
    if padding == "same":
        totals = (
            max(0, (-(-n // s) - 1) * s + k - n)
            for n, k, s in zip(size, window, stride, strict=True)
        )
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(padding, str):
        raise ValueError(f'{name}: padding is {padding!r}; "valid", "same" or numbers are wanted.')
    pads = padding if isinstance(padding, (tuple, list)) else (padding, padding)
    if len(pads) != 2:
        raise ValueError(f"{name}: padding is {padding}; a pair, rows and columns, is wanted.")
    return tuple(_pair(p, f"{name}: padding", 0) for p in pads)


def _pair(x, name, least):
    pair = tuple(x) if isinstance(x, (tuple, list)) else (x, x)
    if len(pair) != 2 or any(operator.index(n) < least for n in pair):
        raise ValueError(f"{name} is {x}; a number or a pair, {least} or more, is wanted.")
    return tuple(map(operator.index, pair))
