"""Pure functions that networks are made of."""

import numpy as np

from revgrad.transforms import stop_gradient


def log_softmax(logits, axis=-1):
    """log(softmax(logits)) along an axis, without overflow; shape and dtype of logits."""
    shifted = logits - stop_gradient(np.max(logits, axis=axis, keepdims=True))
    return shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))


def softmax_cross_entropy(logits, targets):
    """Mean negative log-likelihood: a scalar, in nats.

    logits: (..., classes); targets: the same shape, probabilities (one-hot rows for labels).
    """
    total = np.sum(targets * log_softmax(logits))
    return -total / int(np.prod(logits.shape[:-1]))
