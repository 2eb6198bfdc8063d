"""A state dict for all tests of weights."""

import pytest

from deepjax import weights
from weights.nets import random_variables, small


@pytest.fixture(scope="session")
def state_dict():
    return weights.to_torch(small(), random_variables(small()))
