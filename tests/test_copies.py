"""A traced value is not copied out of its trace."""

import copy
import pickle

import pytest

import revgrad as rg


def test_a_deep_copy_of_a_traced_value_keeps_its_derivative():
    assert rg.grad(lambda x: copy.deepcopy([x])[0] ** 2)(3.0) == 6.0


def test_a_traced_value_is_not_pickled():
    with pytest.raises(TypeError, match="pickle stop_gradient"):
        rg.grad(lambda x: pickle.loads(pickle.dumps(x)))(3.0)
