"""Saliency, guided backpropagation and deconvnets against PyTorch, finite differences, and each other."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import helpers
from deepjax import inside, units, weights, zoo
from deepjax.errors import InputError

RULES = {"gradient": inside.gradient, "guided": inside.guided_backprop, "deconvnet": inside.deconvnet}


def torch_gradient(module, x, classes, rule):
    """Return the gradient of the logits of these classes by PyTorch, with another backward pass for all ReLUs."""
    torch = pytest.importorskip("torch")

    class Rectify(torch.autograd.Function):
        @staticmethod
        def forward(context, x, most):
            context.save_for_backward((x > 0) & (x < most))
            return x.clamp(0, most)

        @staticmethod
        def backward(context, g):
            (passed,) = context.saved_tensors
            return {"gradient": g * passed, "guided": g.clamp(min=0) * passed, "deconvnet": g.clamp(min=0)}[rule], None

    class Rectifier(torch.nn.Module):
        def __init__(self, most):
            super().__init__()
            self.most = most

        def forward(self, x):
            return Rectify.apply(x, self.most)

    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.ReLU | torch.nn.ReLU6):
                setattr(parent, name, Rectifier(6.0 if isinstance(child, torch.nn.ReLU6) else torch.inf))
    x = torch.tensor(np.moveaxis(x, -1, 1), requires_grad=True)
    module.eval()(x)[range(len(classes)), list(classes)].sum().backward()
    return np.moveaxis(x.grad.numpy(), 1, -1)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["residual", "mobilenet_v2"])
def test_rules_are_pytorchs_with_other_relus(name, rule):
    models = helpers.import_torchvision().models
    if name == "residual":
        theirs = models.resnet.ResNet(models.resnet.BasicBlock, (1, 2, 1, 1), num_classes=10)
        ours = zoo.residual.resnet((1, 2, 1, 1), 10)
    else:
        theirs, ours = (
            models.mobilenet_v2(num_classes=10, width_mult=0.25),
            zoo.create(name, num_classes=10, width=0.25),
        )
    helpers.randomize_torch(theirs)
    variables = weights.from_torch(ours, theirs.state_dict())
    (x,) = helpers.random_arrays(1, (2, 32, 32, 3))
    found = RULES[rule](ours, variables, x, np.array([3, 7]))
    wanted = torch_gradient(theirs, x, (3, 7), rule)
    assert np.abs(wanted).max() > 0
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


class Deep(nn.Module):
    """Rectified units in a scan, stored or recomputed, whose inputs have both signs."""

    remat: str = "none"

    @nn.compact
    def __call__(self, x, *, train):
        x = units.stack(Unit(), depth=3, remat=self.remat)(x.mean((1, 2)), train=train)
        return nn.Dense(4)(x)


class Unit(nn.Module):
    """x + a rectified layer."""

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        y = nn.relu(nn.Dense(8)(x))
        return x + nn.Dense(x.shape[-1])(y)


@pytest.mark.parametrize("rule", RULES)
def test_rectifiers_in_scans_and_under_remat_are_replaced(rule):
    (x,) = helpers.random_arrays(2, (2, 3, 3, 5))
    variables = jax.jit(Deep().init, static_argnames="train")(jax.random.key(0), x, train=False)
    found = RULES[rule](Deep(), variables, x)
    for remat in ("unit", "sqrt"):
        np.testing.assert_allclose(RULES[rule](Deep(remat=remat), variables, x), found, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found, by_hand(variables["params"], np.float64(x), rule), rtol=1e-4, atol=1e-6)


def by_hand(params, x, rule):
    """Return the same in float64 NumPy, layer by layer."""
    (stacked,) = (each for name, each in params.items() if name != "Dense_0")
    stacked = stacked.get("unit", stacked)
    first, second = (jax.tree.map(np.float64, stacked[name]) for name in ("Dense_0", "Dense_1"))
    last, h, before = jax.tree.map(np.float64, params["Dense_0"]), x.mean((1, 2)), []
    for i in range(3):
        before.append(h @ first["kernel"][i] + first["bias"][i])
        h = h + np.maximum(before[-1], 0) @ second["kernel"][i] + second["bias"][i]
    g = last["kernel"].T[(h @ last["kernel"] + last["bias"]).argmax(-1)]
    for i in (2, 1, 0):
        inner = g @ second["kernel"][i].T
        passed = {"gradient": inner, "guided": np.maximum(inner, 0), "deconvnet": np.maximum(inner, 0)}[rule]
        g = g + (passed * (before[i] > 0 if rule != "deconvnet" else 1)) @ first["kernel"][i].T
    return np.broadcast_to(g[:, None, None] / 9, x.shape)


def test_saliency_is_the_largest_finite_difference_of_the_logit_over_channels():
    (x,) = helpers.random_arrays(3, (1, 4, 4, 2))
    model = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(6), nn.sigmoid, nn.Dense(3)])
    variables = jax.jit(model.init)(jax.random.key(1), x)
    logit = jax.jit(lambda x: model.apply(variables, x)[:, 2])
    steps = np.eye(32).reshape(32, 4, 4, 2).astype(np.float32) * 1e-2
    slopes = (logit(x + steps) - logit(x - steps)) / 2e-2
    found = inside.saliency(model, variables, x, np.array([2]))
    np.testing.assert_allclose(found[0], np.abs(slopes.reshape(4, 4, 2)).max(-1), rtol=1e-2, atol=1e-4)
    with pytest.raises(InputError, match="the model has no rectifier"):
        inside.guided_backprop(model, variables, x)


def test_the_bound_on_the_variance_in_a_norm_is_no_rectifier():
    (x,) = helpers.random_arrays(5, (3, 5))
    model = nn.Sequential([nn.Dense(4), nn.LayerNorm(), nn.Dense(2)])
    variables = jax.jit(model.init)(jax.random.key(1), x)
    with pytest.raises(InputError, match="no rectifier"):
        inside.guided_backprop(model, variables, x)


def test_a_function_of_a_user_that_is_called_relu_is_kept():
    (x,) = helpers.random_arrays(6, (3, 5))

    @jax.jit
    def relu(x):
        return 2 * x

    model = nn.Sequential([nn.Dense(4), relu, nn.relu, nn.Dense(2)])
    variables = jax.jit(model.init)(jax.random.key(1), x)
    first, last = (jax.tree.map(np.float64, variables["params"][f"layers_{i}"]) for i in (0, 3))
    h = 2 * (x @ first["kernel"] + first["bias"])
    g = np.maximum(last["kernel"].T[(np.maximum(h, 0) @ last["kernel"] + last["bias"]).argmax(-1)], 0)
    wanted = 2 * (g * (h > 0)) @ first["kernel"].T
    np.testing.assert_allclose(inside.guided_backprop(model, variables, x), wanted, rtol=1e-4, atol=1e-6)


def test_gates_are_no_rectifiers():
    (x,) = helpers.random_arrays(4, (3, 5))
    model = nn.Sequential([nn.Dense(4), nn.hard_swish, nn.Dense(2)])
    variables = jax.jit(model.init)(jax.random.key(1), x)
    with pytest.raises(InputError, match="no rectifier"):
        inside.deconvnet(model, variables, x)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (np.array([0, 3]), "class 3 is not in 0 to 2"),
        (np.array([-1, 0]), "class -1 is not in 0 to 2"),
        (np.array([0]), r"classes of shape \(1,\), int64 must be integers, one for each of 2 images"),
        (np.array([0.0, 1.0]), "must be integers"),
    ],
)
def test_classes_are_checked(classes, message):
    model, x = nn.Dense(3), jnp.ones((2, 4))
    variables = jax.jit(model.init)(jax.random.key(1), x)
    with pytest.raises(InputError, match=message):
        inside.gradient(model, variables, x, classes)


def test_an_output_that_is_no_logits_is_refused():
    model = zoo.create("cifar_resnet20", features_only=True)
    x = jnp.ones((1, 8, 8, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    with pytest.raises(InputError, match=r"it must be logits \[batch, classes\]"):
        inside.saliency(model, zeros, x)
