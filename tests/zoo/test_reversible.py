"""Reversible networks: the paper's counts, the coupling, remat, options, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import zoo
from deepjax.errors import InputError
from deepjax.units import Branch, Reversible, ZeroPad, unstack_units

KEY = jax.random.key(0)
SMALL = {"depth": 38, "width": 4, "last": 4.0}


def count(name, **options):
    model = zoo.create(name, **options)
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, *model.usual_input)), train=False))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def started(model, size=8):
    x = jax.random.normal(jax.random.key(1), (4, size, size, 3))
    variables = jax.jit(lambda: model.init(KEY, x, train=False))()
    return variables, x


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
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 8)).astype(np.float32)
    unit = Reversible(f, g, shortcut)
    variables = unit.init(KEY, x, train=False)
    y = unit.apply(variables, x, train=False)

    def half(module, name, h):
        return module.apply({kind: tree[name] for kind, tree in variables.items()}, h, train=False)

    def skip(h):
        return h if shortcut is None else np.pad(h[:, ::2, ::2], ((0, 0),) * 3 + ((0, 2),))

    y1 = skip(x[..., :4]) + half(f, "f", x[..., 4:])
    y2 = skip(x[..., 4:]) + half(g, "g", y1)
    assert_allclose(y, np.concatenate([y1, y2], -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("depth", "norm", "x64", "tolerance"),
    [(38, "batch", False, 1e-4), (218, "batch", True, 1e-10), (218, "group", True, 1e-10)],
)
def test_what_is_not_kept_is_found_again(depth, norm, x64, tolerance):
    """Gradients and moments with remat "reversible", in training, are those of keeping everything.

    Through many layers, float32's own rounding hides that: it is as far from float64's gradients with both.
    """
    options = SMALL | {"depth": depth, "norm": norm}
    kept, undone = (zoo.create("cifar_revnet", **options, remat=remat) for remat in ("none", "reversible"))
    start = started(kept)

    def gradients(model, variables, x):
        def loss(params):
            logits, new = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return -jax.nn.log_softmax(logits)[jnp.arange(4), jnp.arange(4)].mean(), new

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    with jax.enable_x64(x64):
        variables, x = jax.tree.map(lambda a: a.astype(jnp.float64 if x64 else a.dtype), start)
        ((a, moments), grads), ((b, theirs), others) = (gradients(model, variables, x) for model in (kept, undone))

    def same(p, q):
        assert_allclose(p, q, rtol=tolerance, atol=tolerance * float(np.abs(p).max()))

    jax.tree.map(same, (a, moments, grads), (b, theirs, others))


def test_unrolled_it_is_the_same_network():
    scanned, unrolled = zoo.create("cifar_revnet", **SMALL), zoo.create("cifar_revnet", **SMALL, scan=False)
    variables, x = started(scanned)
    apart = {kind: unstack_units(tree) for kind, tree in variables.items()}
    assert_allclose(
        unrolled.apply(apart, x, train=False), scanned.apply(variables, x, train=False), rtol=1e-5, atol=1e-5
    )


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
    model = zoo.create("cifar_revnet", **SMALL, norm="layer", remat="reversible")
    variables, x = started(model)
    assert np.isfinite(model.apply(variables, x, train=True)).all()
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
