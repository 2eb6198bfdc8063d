"""Shake-shake networks: the authors' numbers by PyTorch, options and errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from numpy.testing import assert_allclose

from deepjax import zoo
from deepjax.errors import InputError
from deepjax.layers import ShakeShake
from deepjax.trace import around_calls
from deepjax.units import unstack_units
from deepjax.zoo.shake import TwoPaths
from helpers import draw_variables

KEY = jax.random.key(0)


def images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def torch_shake(torch, variables, x, depths):
    """The network as Gastaldi's code builds it, in evaluation or with even shares: both branches count half."""
    f = torch.nn.functional
    flat = {
        collection: {
            "/".join(path): torch.from_numpy(np.float64(leaf)).requires_grad_(collection == "params")
            for path, leaf in flatten_dict(unstack_units(tree)).items()
        }
        for collection, tree in variables.items()
    }
    params, moments = flat["params"], flat["batch_stats"]

    def conv(y, name, stride=1):
        kernel = params[f"{name}/kernel"].permute(3, 2, 0, 1)
        return f.conv2d(y, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def norm(y, name):
        p, m = (lambda key: params[f"{name}/{key}"]), (lambda key: moments[f"{name}/{key}"])
        return f.batch_norm(y, m("mean"), m("var"), p("scale"), p("bias"), False, 0.1, 1e-5)

    def branch(y, name, stride):
        y = norm(conv(f.relu(y), f"{name}/conv1", stride), f"{name}/norm1")
        return norm(conv(f.relu(y), f"{name}/conv2"), f"{name}/norm2")

    def shortcut(y, name, stride):
        y = f.relu(y)
        first = conv(f.avg_pool2d(y, 1, stride), f"{name}/conv1")
        second = conv(f.avg_pool2d(f.pad(y, (-1, 1, -1, 1)), 1, stride), f"{name}/conv2")
        return norm(torch.cat([first, second], 1), f"{name}/norm")

    y = norm(conv(torch.from_numpy(np.moveaxis(np.float64(x), -1, 1).copy()), "stem_conv"), "stem_norm")
    for stage, depth in enumerate(depths, 1):
        for i in range(depth):
            name, stride = (
                f"stage{stage}_rest/unit{i}" if i else f"stage{stage}_first",
                2 if stage > 1 and i == 0 else 1,
            )
            mixed = 0.5 * branch(y, f"{name}/branch/a", stride) + 0.5 * branch(y, f"{name}/branch/b", stride)
            y = mixed + (y if i else shortcut(y, f"{name}/shortcut", stride))
    return f.relu(y).mean((2, 3)) @ params["head/kernel"] + params["head/bias"], params


def test_shake_shake_is_its_authors():
    torch = pytest.importorskip("torch")
    x, weights = images(2, 9, 8, 3), images(2, 5, seed=1)
    model = zoo.create("shake_shake", num_classes=5, width=4)
    model = model.clone(depths=(1, 2), features=model.features[:2])
    variables = draw_variables(model, x)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(params):
        y = model.apply({**variables, "params": params}, x, train=False)
        return (y * weights).sum(), y

    expected, params = torch_shake(torch, variables, x, model.depths)
    (expected * torch.from_numpy(weights)).sum().backward()
    gradients, y = gradient(variables["params"])
    assert_allclose(y, expected.detach().numpy(), rtol=1e-4, atol=1e-4)
    ours = {"/".join(path): leaf for path, leaf in flatten_dict(unstack_units(gradients)).items()}
    assert set(ours) == set(params)
    for name, leaf in params.items():
        theirs = leaf.grad.numpy()
        assert_allclose(ours[name], theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max() + 1e-7, err_msg=name)


def test_options_reach_every_unit():
    """How these mix is tested with `functional.shake_shake` and `units.Shake`."""
    options, seen = {"forward": "even", "backward": "keep", "per": "batch"}, []

    def record(module, run, args, kwargs):
        if isinstance(module, ShakeShake):
            seen.append({name: getattr(module, name) for name in options})
        return run(*args, **kwargs)

    model = zoo.create("shake_shake", depth=14, width=2, scan=False, **options)
    with around_calls(record):
        jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 8, 8, 3)), train=False))
    assert seen == 6 * [options]


def test_two_paths_of_an_odd_number_of_features():
    x = images(1, 5, 5, 3)
    shapes = jax.eval_shape(lambda: TwoPaths(5, 2).init_with_output(KEY, x, train=False))
    assert shapes[0].shape == (1, 3, 3, 5)
    assert [shapes[1]["params"][name]["kernel"].shape[-1] for name in ("conv1", "conv2")] == [2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 28}, "nearest are 26 and 32"),
        ({"forward": "keep"}, "forward 'keep' is unknown"),
        ({"backward": "shaken"}, "did you mean 'shake'"),
        ({"per": "example"}, "per 'example' is unknown"),
        ({"norm": "zero_batch"}, "norm 'zero_batch' is unknown"),
        ({"width": 0}, "width 0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(InputError, match=message):
        zoo.create("shake_shake", **options)
