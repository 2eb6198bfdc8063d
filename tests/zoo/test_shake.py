"""Shake-shake networks: the authors' numbers by PyTorch, options and errors."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from numpy.testing import assert_allclose

from deepjax import zoo
from deepjax.errors import InputError
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


@pytest.mark.parametrize("scan", [True, False])
def test_shake_shake_is_its_authors(scan):
    torch = pytest.importorskip("torch")
    x, weights = images(2, 9, 8, 3), images(2, 5, seed=1)
    model = zoo.create("shake_shake", num_classes=5, depth=20, width=4, scan=scan)
    variables = draw_variables(model, x)

    @jax.jit
    @jax.grad
    def gradient(params):
        return (model.apply({**variables, "params": params}, x, train=False) * weights).sum()

    expected, params = torch_shake(torch, variables, x, (3, 3, 3))
    (expected * torch.from_numpy(weights)).sum().backward()
    y = jax.jit(lambda v: model.apply(v, x, train=False))(variables)
    assert_allclose(y, expected.detach().numpy(), rtol=1e-4, atol=1e-4)
    ours = {"/".join(path): leaf for path, leaf in flatten_dict(unstack_units(gradient(variables["params"]))).items()}
    assert set(ours) == set(params)
    for name, leaf in params.items():
        theirs = leaf.grad.numpy()
        assert_allclose(ours[name], theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max() + 1e-7, err_msg=name)


def test_shake_shake_mixes_as_its_options_say():
    x = images(4, 8, 8, 3)
    even = zoo.create("shake_shake", depth=8, width=4, forward="even", backward="even")
    variables = draw_variables(even, x)

    def train(key, **options):
        model = zoo.create("shake_shake", depth=8, width=4, **options)

        @jax.jit
        def step(params):
            def loss(params):
                rngs = {} if key is None else {"dropout": key}
                variables_ = {**variables, "params": params}
                y, _ = model.apply(variables_, x, train=True, mutable=["batch_stats"], rngs=rngs)
                return y.sum(), y

            (_, y), gradients = jax.value_and_grad(loss, has_aux=True)(params)
            return y, gradients["stage3_first"]["branch"]["a"]["norm2"]["bias"]

        return [np.asarray(each) for each in step(variables["params"])]

    y, g = train(None, forward="even", backward="even")
    shaken, _ = train(KEY)
    assert not np.allclose(shaken, y, rtol=1e-2)
    backwards, other = train(KEY, forward="even")
    assert_allclose(backwards, y, rtol=1e-5)
    assert not np.allclose(other, g, rtol=1e-2)
    assert not np.allclose(train(KEY, per="batch")[0], shaken, rtol=1e-2)


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
