"""Reversible networks: the paper's counts, the coupling, remat, options, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import functional, zoo
from deepjax.errors import InputError
from deepjax.units import Branch, Reversible, ZeroPad, unstack_units
from deepjax.zoo.reversible import RevNet
from helpers import draw_variables, random_arrays

KEY = jax.random.key(0)


def count(name, **options):
    model = zoo.create(name, **options)
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, *model.usual_input)), train=False))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def small(depths, **options):
    return RevNet(depths, (4, 8)[: len(depths)], num_classes=3, **options)


X = random_arrays(1, (4, 8, 8, 3))[0]


@pytest.mark.parametrize(("depth", "features", "millions"), [(38, (32, 64, 112), 0.46), (110, (32, 64, 128), 1.73)])
def test_counts_are_the_papers(depth, features, millions):
    """Gomez et al. 2017, table 1, and layer by layer."""
    units, before = (depth - 2) // 12, features[0] // 2
    total = 27 * features[0] + 2 * features[2] + (features[2] + 1) * 10  # stem, last norm, head
    for each in (width // 2 for width in features):
        total += (9 * each + 2) * before + (4 * units - 1) * (9 * each + 2) * each  # a kernel, and the norm before it
        before = each
    assert count(f"cifar_revnet{depth}") == total
    assert round(count(f"cifar_revnet{depth}") / 1e6, 2) == millions


@pytest.mark.parametrize("stride", [1, 2])
def test_a_unit_couples_its_streams(stride):
    shortcut = ZeroPad(6, 2) if stride == 2 else None
    width = 6 if stride == 2 else 4
    f, g = (Branch((width,) * 2, (3, 3), (s, 1), "pre") for s in (stride, 1))
    (x,) = random_arrays(0, (2, 8, 8, 8))
    unit = Reversible(f, g, shortcut)
    variables = draw_variables(unit, x)

    @jax.jit
    def both(x):
        def half(module, name, h):
            return module.apply({kind: tree[name] for kind, tree in variables.items()}, h, train=False)

        def skip(h):
            return h if shortcut is None else jnp.pad(h[:, ::2, ::2], ((0, 0),) * 3 + ((0, 2),))

        y1 = skip(x[..., :4]) + half(f, "f", x[..., 4:])
        y2 = skip(x[..., 4:]) + half(g, "g", y1)
        return unit.apply(variables, x, train=False), jnp.concatenate([y1, y2], -1)

    assert_allclose(*both(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_what_is_not_kept_is_found_again(norm):
    """Gradients and moments with remat "reversible", in training, are those of keeping everything.

    In float64: through many layers, float32's own rounding hides that.
    """
    kept, undone = (small((18,), norm=norm, remat=remat) for remat in ("none", "reversible"))

    def gradients(model, variables, x):
        def loss(params):
            logits, new = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return functional.cross_entropy(logits, np.arange(4) % 3).mean(), new

        return jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"]))

    with jax.enable_x64(True):
        variables, x = jax.tree.map(np.float64, (draw_variables(kept, X), X))
        expected, found = (gradients(model, variables, x) for model in (kept, undone))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[1])) > 1e-3
    jax.tree.map(lambda p, q: assert_allclose(p, q, rtol=1e-10, atol=1e-10 * np.abs(p).max()), expected, found)


def test_unrolled_it_is_the_same_network():
    scanned, unrolled = (small((1, 3), scan=scan) for scan in (True, False))
    variables = draw_variables(scanned, X)
    apart = {kind: unstack_units(tree) for kind, tree in variables.items()}
    y, other = jax.jit(lambda: [scanned.apply(variables, X, train=False), unrolled.apply(apart, X, train=False)])()
    assert_allclose(y, other, rtol=1e-4, atol=1e-5)


def test_maps_and_pooled_features():
    model = zoo.create("cifar_revnet38", features_only=True)
    x = jnp.zeros((2, 32, 32, 3))
    maps = jax.eval_shape(lambda: model.init_with_output(KEY, x, train=False)[0])
    assert {name: each.shape[1:] for name, each in maps.items()} == {
        "stem": (32, 32, 32),
        "stage1": (32, 32, 32),
        "stage2": (16, 16, 64),
        "stage3": (8, 8, 112),
    }
    pooled = zoo.create("cifar_revnet38", return_logits=False)
    assert jax.eval_shape(lambda: pooled.init_with_output(KEY, x, train=False)[0]).shape == (2, 112)


def test_other_norms_run():
    model = small((2, 2), norm="layer", remat="reversible")
    y, variables = jax.eval_shape(lambda: model.init_with_output(KEY, X, train=True))
    assert y.shape == (4, 3)
    assert "batch_stats" not in variables


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar_revnet", {"depth": 40}, "depth 40 is not 12n"),
        ("cifar_revnet", {"width": 7}, "width 7 and last 4 make stages of 7, 14 and 28 features; they must be even"),
        ("cifar_revnet", {"width": 0}, "width 0"),
        ("cifar_revnet", {"last": 1.5}, "last 1.5"),
        ("cifar_revnet", {"width": 4, "last": 3.6}, "last 3.6 make stages of 4, 8 and 14.4"),
        ("cifar_revnet", {"norm": "non"}, "norm 'non' is unknown"),
        ("cifar_revnet", {"norm": "none"}, "norm none lets rounding"),
        ("cifar_revnet", {"dropout": 1.5}, "dropout 1.5"),
        ("cifar_revnet", {"num_classes": 0}, "num_classes 0"),
        ("cifar_revnet", {"remat": "reversible", "scan": False}, "needs a network with scanned units"),
        ("cifar_resnet20", {"remat": "reversible"}, "remat 'reversible' is unknown"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(InputError, match=message):
        zoo.create(name, **options)
