"""Settings of optimizers that are refused."""

import pytest

from deepjax import config
from deepjax.errors import InputError
from deepjax.optimizers import OPTIMIZERS, make_optimizer


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "sdg"},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"second_moment": 1.0},
        {"epsilon": 0.0},
        {"weight_decay": -1e-4},
        {"clip_norm": 0.0},
        {"clip_value": 0.0},
        {"clip_adaptive": -0.01},
        {"lookahead": -1},
        {"slow_rate": 0.6},
        {"slow_rate": 1.5},
        {"line_search": True},
        {"accumulate": 0},
    ],
)
def test_optimizer_errors(fields):
    (field,) = fields
    with pytest.raises(InputError, match=f"optimizer.{field}"):
        make_optimizer(config.Optimizer(**{"name": "adam"} | fields), 0.1)


@pytest.mark.parametrize("field", ["weight_decay", "clip_norm", "clip_value", "clip_adaptive", "accumulate", "groups"])
def test_a_line_search_needs_the_loss_as_it_is(field):
    value = {"accumulate": 2, "groups": {"*/bias": {"frozen": True}}}.get(field, 0.1)
    with pytest.raises(InputError, match=f"optimizer.line_search .*optimizer.{field}"):
        make_optimizer(config.Optimizer(name="lbfgs", line_search=True, **{field: value}), 0.1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_field_that_does_nothing_is_refused(name):
    for field in ("momentum", "second_moment", "epsilon", "momentum_decay", "history"):
        optimizer = config.Optimizer(name=name, **{field: 1 if field == "history" else 0.5})
        if field in OPTIMIZERS[name].usual:
            make_optimizer(optimizer, 0.1)
        else:
            with pytest.raises(InputError, match=f"optimizer.{field} .* does nothing for {name}"):
                make_optimizer(optimizer, 0.1)
