"""The recorded numbers of parameters."""

import pytest

from deepjax import zoo
from deepjax.zoo import parameters


def test_every_network_has_its_number():
    assert set(parameters._recorded()) == set(zoo.MODELS)


@pytest.mark.parametrize("name", ["alexnet", "cifar_resnet20", "mlp"])
def test_numbers_are_those_of_the_networks(name):
    assert parameters.traced_count(name) == zoo.parameter_count(name)


@pytest.mark.slow
def test_all_numbers_are_those_of_the_networks():
    assert {name: parameters.traced_count(name) for name in zoo.MODELS} == parameters._recorded()


def test_a_network_that_is_not_recorded_is_traced(monkeypatch):
    monkeypatch.setattr(parameters, "_recorded", dict)
    assert zoo.parameter_count("lenet5_modern") == 61_706
