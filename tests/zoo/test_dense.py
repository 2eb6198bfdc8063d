"""Dense networks: counts, numbers by PyTorch, memory under remat, options, errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from numpy.testing import assert_allclose

from deepjax import zoo
from deepjax.errors import InputError
from deepjax.layers import Dropout
from deepjax.trace import around_calls
from deepjax.units import Branch, Concat, Unit
from deepjax.zoo.dense import DenseBlock, densenet
from helpers import random_arrays

pytestmark = pytest.mark.slow  # large programs; tests/zoo/test_zoo.py has the fast checks of every network

KEY = jax.random.key(0)


def images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def draw(model, x):
    rng = np.random.default_rng(0)

    def one(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        fan = np.prod(leaf.shape[-4:-1] if leaf.ndim > 3 else leaf.shape[-2:-1])
        around = {"kernel": noise / np.float32(np.sqrt(fan)), "bias": 0.2 * noise, "scale": 1 + 0.2 * noise}
        return (around | {"mean": 0.1 * noise, "var": 1 + 0.1 * abs(noise)})[path[-1].key]

    shapes = jax.eval_shape(lambda: model.init(KEY, x, train=False))
    return jax.tree_util.tree_map_with_path(one, shapes)


# Counts

COUNTS = {  # torchvision's table; BC-100-12 to the digit, the others to the papers' millions
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "densenet_bc_100_12": 769_162,
    "densenet_bc_250_24": 15.3e6,
    "densenet_bc_190_40": 25.6e6,
    "densenet_40_12": 1.0e6,
    "densenet_100_12": 7.0e6,
    "densenet_100_24": 27.2e6,
}


def closed_form(model):
    """Parameters by the papers' description, for the numbers of a network."""
    k, features = model.growth, model.stem_features
    total = (49 * 3 + 2 if model.stem == "imagenet" else 27) * features
    for block, depth in enumerate(model.depths):
        if block > 0:
            kept = int(model.compression * features)
            total += 2 * features + features * kept
            features = kept
        for _ in range(depth):
            wide = features * 4 * k + 8 * k + 36 * k * k
            total += 2 * features + (wide if model.bottleneck else 9 * features * k)
            features += k
    return total + 2 * features + (features + 1) * model.num_classes


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_published(name):
    count, published = closed_form(zoo.create(name)), COUNTS[name]
    assert count == published if isinstance(published, int) else abs(count - published) < 0.06e6


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("densenet121", {}),
        ("cifar_densenet", {"depth": 16, "growth": 5}),
        ("cifar_densenet", {"depth": 13, "growth": 5, "bottleneck": False}),
    ],
)
def test_counts_in_closed_form(name, options):
    model = zoo.create(name, **options)
    x = jnp.zeros((2, 32, 32, 3))
    logits, variables = jax.eval_shape(lambda: model.init_with_output(KEY, x, train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == closed_form(model)
    assert logits.shape == (2, model.num_classes)


# Numbers


def torch_dense(torch, variables, x, depths, *, imagenet, train):
    """The network as its paper draws it, by PyTorch in float64. Returns logits, parameters, moments."""
    f = torch.nn.functional
    flat = {
        collection: {"/".join(path): torch.from_numpy(np.float64(leaf)) for path, leaf in flatten_dict(tree).items()}
        for collection, tree in variables.items()
    }
    params, moments = flat["params"], flat["batch_stats"]
    for leaf in params.values():
        leaf.requires_grad_()

    def conv(y, name, stride=1):
        kernel = params[f"{name}/kernel"].permute(3, 2, 0, 1)
        return f.conv2d(y, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def norm_relu(y, name):
        mean, var = moments[f"{name}/mean"], moments[f"{name}/var"]
        return f.relu(f.batch_norm(y, mean, var, params[f"{name}/scale"], params[f"{name}/bias"], train, 0.1, 1e-5))

    y = conv(torch.from_numpy(np.moveaxis(np.float64(x), -1, 1).copy()), "stem/conv", 2 if imagenet else 1)
    y = f.max_pool2d(norm_relu(y, "stem/norm"), 3, 2, 1) if imagenet else y
    for block, depth in enumerate(depths, 1):
        for layer in range(1, depth + 1):
            name, new = f"block{block}/layer{layer}", y
            for i in (1, 2) if f"{name}/conv2/kernel" in params else (1,):
                new = conv(norm_relu(new, f"{name}/norm{i}"), f"{name}/conv{i}")
            y = torch.cat([y, new], 1)
        if block < len(depths):
            y = f.avg_pool2d(conv(norm_relu(y, f"transition{block}/norm"), f"transition{block}/conv"), 2)
    return norm_relu(y, "final/norm").mean((2, 3)) @ params["head/kernel"] + params["head/bias"], params, moments


MODELS = {
    "cifar": lambda **o: zoo.create("cifar_densenet", num_classes=5, depth=10, growth=3, bottleneck=False, **o),
    "bc": lambda **o: zoo.create("cifar_densenet", num_classes=5, depth=16, growth=3, **o),
    "imagenet": lambda **o: densenet((2, 1, 2), 5, growth=3, stem_features=4, **o),
}
DEPTHS = {"cifar": (2, 2, 2), "bc": (2, 2, 2), "imagenet": (2, 1, 2)}


@pytest.mark.parametrize(("name", "remat"), [("cifar", "none"), ("bc", "unit"), ("imagenet", "none")])
def test_network_is_torchs(name, remat):
    """In float64, because the gradient of a scale that a later norm undoes, the stem's, is almost 0."""
    torch = pytest.importorskip("torch")
    model = MODELS[name](remat=remat)
    x, weights = images(4, *((33, 35) if name == "imagenet" else (8, 9)), 3), images(4, 5, seed=1)
    variables = jax.tree.map(np.float64, draw(model, x))
    x, weights = np.float64(x), np.float64(weights)
    options = {"depths": DEPTHS[name], "imagenet": name == "imagenet"}

    @jax.jit
    def both(params):
        def loss(params):
            y, new = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return (y * weights).sum(), (y, new["batch_stats"])

        gradients, (y, moments) = jax.grad(loss, has_aux=True)(params)
        return model.apply(variables, x, train=False), y, moments, gradients

    with jax.enable_x64(True):
        logits, y, moments, gradients = jax.device_get(both(variables["params"]))
    with torch.no_grad():
        expected = torch_dense(torch, variables, x, train=False, **options)[0]
    assert_allclose(logits, expected, rtol=1e-10, atol=1e-10)
    expected, params, theirs = torch_dense(torch, variables, x, train=True, **options)
    (expected * torch.from_numpy(weights)).sum().backward()
    assert_allclose(y, expected.detach(), rtol=1e-10, atol=1e-10)
    for tree, reference in ((gradients, {k: v.grad for k, v in params.items()}), (moments, theirs)):
        ours = {"/".join(path): leaf for path, leaf in flatten_dict(tree).items()}
        assert set(ours) == set(reference)
        for key, leaf in reference.items():
            assert_allclose(ours[key], leaf.numpy(), rtol=1e-9, atol=1e-10, err_msg=key)


def test_a_block_is_a_chain_of_units_that_concatenate():
    x = images(2, 5, 5, 4)
    block = DenseBlock(3, 2)
    variables = draw(block, x)

    @jax.jit
    def both():
        y = x
        for i in (1, 2, 3):
            unit = Unit(Branch((8, 2), (1, 3), (1, 1), "pre"), Concat())
            tree = {collection: {"branch": layers[f"layer{i}"]} for collection, layers in variables.items()}
            y = unit.apply(tree, y, train=False)
        return block.apply(variables, x, train=False), y

    assert_allclose(*both(), rtol=1e-5, atol=1e-5)


def test_masked_rows_do_not_reach_a_net():
    model = MODELS["bc"](remat="unit")
    x, mask = images(4, 8, 8, 3), jnp.arange(4) < 3
    variables = draw(model, x)

    @jax.jit
    def forward(x, mask):
        return model.apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])

    padded = x.copy()
    padded[3] = 1e3
    (y, new), (expected, expected_new) = forward(padded, mask), forward(x[:3], None)
    assert_allclose(y[:3], expected, rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_close(new, expected_new, rtol=1e-3, atol=1e-4)


# Remat


def test_remat_needs_less_memory_and_gives_the_same_gradients():
    """Temporaries of the compiled gradient of a block, by XLA's own account: linear in depth, not its square."""
    (x,), depths = random_arrays(0, (8, 16, 16, 8)), (4, 8)
    temporaries = {}
    for depth in depths:
        answers = {}
        for remat in ("none", "unit"):
            block = DenseBlock(depth, 4, remat=remat)
            variables = draw(block, x)

            def loss(params, x, block=block, variables=variables):
                y, new = block.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
                return (y**2).sum(), new

            step = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True)).lower(variables["params"], x).compile()
            temporaries[depth, remat] = step.memory_analysis().temp_size_in_bytes
            answers[remat] = jax.device_get(step(variables["params"], x))
        scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(answers["none"]))
        chex.assert_trees_all_close(answers["unit"], answers["none"], rtol=1e-4, atol=1e-5 * scale)
    print(temporaries)
    assert temporaries[8, "unit"] < 0.5 * temporaries[8, "none"]
    growth = {remat: temporaries[8, remat] / temporaries[4, remat] for remat in ("none", "unit")}
    assert growth["unit"] < 2.1 < 2.3 < growth["none"]


def test_remat_keeps_variables_and_drops_alike():
    plain, remat = (MODELS["bc"](dropout=0.3, remat=remat) for remat in ("none", "unit"))
    x = images(2, 8, 8, 3)
    shapes = [jax.eval_shape(lambda m=m: m.init(KEY, x, train=False)) for m in (plain, remat)]
    chex.assert_trees_all_equal_shapes_and_dtypes(*shapes)
    variables = draw(plain, x)

    @jax.jit
    def train(key):
        call = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": key}}
        return [m.apply(variables, x, **call)[0] for m in (plain, remat)]

    (y, again), other = train(KEY), train(jax.random.key(1))[0]
    assert_allclose(again, y, rtol=1e-4, atol=1e-4)
    assert not np.allclose(y, other)


# Options


def dropouts(model):
    """Where a network drops: the paths of the Dropout layers of a rate above 0 that act in training, with shapes."""
    found = []

    def watch(module, run, args, kwargs):
        if isinstance(module, Dropout) and module.rate > 0:
            found.append(("/".join(module.path[:-1]), args[0].shape[-1]))
        return run(*args, **kwargs)

    with around_calls(watch):
        rngs = {"params": KEY, "dropout": KEY}
        jax.eval_shape(lambda: model.init(rngs, jnp.zeros((1, 32, 32, 3)), train=True))
    return found


def test_dropout_stands_after_each_convolution_or_as_torchvisions_after_each_layer():
    layer = [("block1/layer1", 12), ("block1/layer1", 3), ("block1/layer2", 12), ("block1/layer2", 3)]
    found = dropouts(MODELS["bc"](dropout=0.2))
    assert found[:5] == [*layer, ("", 6)]  # 2 x 3 features of the stem and two layers of 3: 12, of which half stay
    assert len(found) == 3 * 4 + 2
    torchvisions = dropouts(MODELS["imagenet"](dropout=0.2))
    layers = ((1, 1), (1, 2), (2, 1), (3, 1), (3, 2))
    assert [path for path, _ in torchvisions] == [f"block{block}/layer{layer}" for block, layer in layers]
    assert {features for _, features in torchvisions} == {3}
    assert dropouts(MODELS["bc"]()) == []


@pytest.mark.parametrize("norm", ["group", "none"])
def test_norms(norm):
    model = MODELS["bc"](norm=norm)
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 8, 8, 3)), train=False))
    assert set(shapes) == {"params"}
    names = {"/".join(path) for path in flatten_dict(shapes["params"])}
    assert ("stem/conv/bias" in names) == (norm == "none")
    assert ("block1/layer1/norm2/scale" in names) == (norm != "none")
    if norm != "none":
        with pytest.raises(InputError, match="torchvision has no such network"):
            zoo.create("densenet121", norm=norm).torch_names()


def test_maps_and_pooled_features():
    x = jnp.zeros((2, 32, 40, 3))
    model = zoo.create("densenet_bc_100_12", features_only=True)
    maps = jax.eval_shape(lambda: model.init_with_output(KEY, x, train=False)[0])
    shapes = {"stem": (32, 40, 24), "block1": (32, 40, 216), "block2": (16, 20, 300), "block3": (8, 10, 342)}
    assert {name: map.shape[1:] for name, map in maps.items()} == shapes
    pooled = MODELS["bc"](return_logits=False, dtype=jnp.bfloat16)
    y, variables = jax.eval_shape(lambda: pooled.init_with_output(KEY, x, train=False))
    assert (y.shape, y.dtype) == ((2, 12), jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(("depths", "min_size"), [((1,), 1), ((1, 1), 5), ((1, 1, 1, 1), 29)])
def test_minimum_size(depths, min_size):
    model = densenet(depths, growth=2, stem_features=2)
    assert model.min_size == min_size
    maps = model.clone(min_size=1, features_only=True)
    y = jax.eval_shape(lambda: maps.init_with_output(KEY, jnp.zeros((1, min_size, min_size, 3)), train=False)[0])
    assert y[f"block{len(depths)}"].shape[1:3] == (1, 1)
    if min_size > 1:
        with pytest.raises(InputError, match="pool"):  # and not for nothing
            jax.eval_shape(lambda: model.clone(min_size=1).init(KEY, jnp.zeros((1, min_size - 1, 64, 3)), train=False))


def test_minimum_size_of_cifar():
    jax.eval_shape(lambda: MODELS["cifar"]().init(KEY, jnp.zeros((1, 4, 4, 3)), train=False))
    with pytest.raises(InputError, match="minimum of 4x4"):
        MODELS["cifar"]().init(KEY, jnp.zeros((1, 4, 3, 3)), train=False)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar_densenet", {"depth": 99}, "depth 99 is not 6n \\+ 4; the nearest are 94 and 100"),
        ("cifar_densenet", {"depth": 41, "bottleneck": False}, "not 3n \\+ 4; the nearest are 40 and 43"),
        ("cifar_densenet", {"growth": 0}, "growth 0"),
        ("densenet121", {"norm": "bach"}, "norm 'bach' is unknown"),
        ("densenet121", {"dropout": -1.0}, "dropout -1.0 is a probability"),
        ("densenet121", {"compression": 0.0}, "compression 0.0 must be above 0"),
        ("densenet121", {"remat": "sqrt"}, "remat 'sqrt' is unknown"),
        ("densenet121", {"growth": 2}, "no option 'growth'"),
        ("densenet121", {"num_classes": 0}, "num_classes 0"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(InputError, match=message):
        zoo.create(name, **options)


@pytest.mark.parametrize("depths", [(), (2, 0)])
def test_blocks_have_layers(depths):
    with pytest.raises(InputError, match="layers_per_block 0"):
        densenet(depths)
