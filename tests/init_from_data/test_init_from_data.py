"""Initialization from data on models that deepjax knows nothing of, made of Flax's own modules."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from numpy.testing import assert_allclose

from deepjax import zoo
from deepjax.errors import InputError
from deepjax.functional import crelu
from deepjax.init_from_data import (
    between_layer,
    kmeans_kernels,
    looks_linear,
    lsuv,
    output_variances,
    pca_kernels,
    within_layer,
)

KEY = jax.random.key(7)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (30, 20, 25):
            x = nn.tanh(nn.Dense(width, bias_init=nn.initializers.normal(0.1))(x))
        return nn.Dense(10)(x)


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.Conv(12, (3, 3), strides=2, padding="VALID")(x))
        x = nn.relu(nn.ConvTranspose(6, (2, 2), strides=(2, 2))(x))
        return nn.Dense(5)(x.reshape(len(x), -1))


class Volumes(nn.Module):
    @nn.compact
    def __call__(self, x):  # [batch, 4, 4, 4, 3]
        x = nn.relu(nn.Conv(6, (2, 2, 2))(x))
        return nn.Conv(7, (3,), padding=1)(x.reshape(len(x), 16, -1))


class PreactResNet(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(8, (3, 3))(x)
        for _ in range(2):
            y = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            y = nn.Conv(8, (3, 3), use_bias=False)(y)
            y = nn.relu(nn.BatchNorm(use_running_average=not train)(y))
            x = x + nn.Conv(8, (3, 3), use_bias=False)(y)
        return nn.Dense(4)(nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2))))


class Branchy(nn.Module):
    @nn.compact
    def __call__(self, x):
        a = nn.Conv(4, (1, 1))(x)
        b = nn.Conv(4, (3, 3))(nn.relu(nn.Conv(4, (1, 1))(x)))
        c = nn.avg_pool(nn.Conv(3, (3, 3))(x), (2, 2))
        c = jax.image.resize(c, (*x.shape[:3], 3), "nearest")
        return {"maps": (joined := jnp.concatenate([a, b, c], -1)), "logits": nn.Dense(3)(joined.mean((1, 2)))}


class Sharing(nn.Module):
    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(x.shape[-1])
        for _ in range(3):
            x = nn.relu(shared(x))
        return nn.Dense(2)(x)


class Unit(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(x.shape[-1])(x)), None


def scan(unit, depth, **options):
    lifted = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}} | options
    return nn.scan(unit, length=depth, **lifted)


class Scanned(nn.Module):
    depth: int = 1000

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16)(x)
        x, _ = scan(nn.remat(Unit), self.depth)()(x, None)
        return nn.Dense(3)(x)


class Grouped(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(12, (3, 3), feature_group_count=3)(x)
        x = nn.Conv(24, (3, 3), feature_group_count=12)(nn.relu(x))  # depthwise, two outputs of each
        return nn.Conv(6, (1, 1))(nn.relu(x))


class Encoder(nn.Module):
    """A Transformer encoder of Flax's own modules."""

    @nn.compact
    def __call__(self, tokens, *, train):
        x = nn.Embed(50, 16)(tokens)
        for _ in range(1):
            y = nn.MultiHeadDotProductAttention(4, dropout_rate=0.1, deterministic=not train)(nn.LayerNorm()(x))
            x = x + y
            x = x + nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x))))
        return nn.Dense(7)(x.mean(1))


def features(batch=64, size=12, seed=0):
    return 2 * jax.random.normal(jax.random.key(seed), (batch, size)) + 0.3


def images(batch=16, channels=3, seed=0):
    return jax.random.normal(jax.random.key(seed), (batch, 8, 8, channels)) - 0.5


TOKENS = jax.random.randint(jax.random.key(3), (8, 10), 0, 50)
NETS = {
    "mlp": (MLP(), features(), {}),
    "cnn": (CNN(), images(), {}),
    "preact": (PreactResNet(), images(), {"train": True}),
    "branchy": (Branchy(), images(), {}),
    "sharing": (Sharing(), features(), {}),
    "scanned": (Scanned(), features(), {}),
    "grouped": (Grouped(), images(channels=6), {}),
    "encoder": (Encoder(), TOKENS, {"train": False}),
    "volumes": (Volumes(), jax.random.normal(KEY, (4, 4, 4, 4, 3)), {}),
}


def captured(model, variables, x, **call):
    """{path: first output} of each layer, by Flax's own means; where its kernel has an axis of units, not."""
    _, state = model.apply(
        variables, x, **call, rngs={"params": KEY}, capture_intermediates=True, mutable=["intermediates", "batch_stats"]
    )
    params = flatten_dict(variables["params"])
    outputs = flatten_dict(state["intermediates"])
    return {
        path[:-1]: np.asarray(outputs[*path[:-1], "__call__"][0], np.float64)
        for path in params
        if path[-1] == "kernel" and (*path[:-1], "__call__") in outputs
    }


@functools.cache
def initialized(method, name):
    model, x, call = NETS[name]
    reached = {}
    return method(model, KEY, x, report=reached.update, **call), reached


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)


@pytest.mark.parametrize("name", NETS)
def test_lsuv_gives_every_layer_unit_variance(name):
    model, x, call = NETS[name]
    variables, reached = initialized(lsuv, name)
    assert shapes(variables) == shapes(jax.eval_shape(lambda: model.init(KEY, x, **call)))
    kernels = [path[:-1] for path in flatten_dict(variables["params"]) if path[-1] == "kernel"]
    assert {tuple(path.split("/")) for path in reached} == set(kernels)
    for values in reached.values():
        assert_allclose(values, 1, atol=1e-3)
    if call.get("train"):
        return  # dropout draws anew
    outputs = captured(model, variables, x, **call)
    assert outputs
    for path, y in outputs.items():
        assert_allclose(y.var(), 1, atol=1e-3, err_msg=str(path))
    for path, value in output_variances(model, variables, x, **call).items():
        assert_allclose(value, reached[path], rtol=1e-3)


@pytest.mark.parametrize("name", ["mlp", "grouped", "encoder", "sharing"])
def test_lsuv_in_steps_comes_within_the_tolerance(name):
    model, x, call = NETS[name]
    variables = lsuv(model, KEY, x, method="iterative", tolerance=0.02, **call)
    for path, y in captured(model, variables, x, **call).items():
        assert abs(y.var() - 1) <= 0.02 + 1e-4, path


def test_lsuv_in_steps_inside_a_scan():
    model, x = Scanned(60), features()
    variables = lsuv(model, KEY, x, method="iterative", tolerance=0.05)
    for values in output_variances(model, variables, x).values():
        assert np.abs(np.asarray(values) - 1).max() <= 0.05


def test_lsuv_in_steps_takes_fresh_batches_and_stops_at_its_limit():
    model, seen = MLP(), []

    def batches():
        for seed in range(1000):
            seen.append(seed)
            yield np.random.default_rng(seed).standard_normal((64, 12), np.float32)

    reached = {}
    lsuv(model, KEY, batches(), method="iterative", tolerance=1e-9, max_iterations=3, report=reached.update)
    assert len(seen) == 1 + 4 * 3  # no batch gives exactly 1: three tries for each of four layers
    lsuv(model, KEY, batches(), report=reached.update)
    assert len(seen) == 1 + 4 * 3 + 1


def test_the_kernels_of_lsuv_are_orthonormal_but_for_their_scale():
    for name in ("cnn", "grouped", "encoder", "scanned"):
        for path, kernel in flatten_dict(initialized(lsuv, name)[0]["params"]).items():
            if path[-1] != "kernel":
                continue
            kernel = np.asarray(kernel, np.float64)
            matrices = kernel if name == "scanned" and len(kernel) == 1000 else kernel[None]
            if "query" in path or "key" in path or "value" in path:
                matrices = matrices.reshape(1, kernel.shape[0], -1)
            groups = {"Conv_0": 3, "Conv_1": 12}.get(path[0], 1) if name == "grouped" else 1
            matrices = matrices.reshape(len(matrices), -1, groups, matrices.shape[-1] // groups)
            for matrix in np.moveaxis(matrices, 2, 1).reshape(-1, matrices.shape[1], matrices.shape[3]):
                singular = np.linalg.svd(matrix, compute_uv=False)
                assert_allclose(singular, singular[0], rtol=1e-3, err_msg=f"{name} {path}")


def test_lsuv_of_a_layer_whose_bias_varies():
    model = nn.Dense(50, bias_init=nn.initializers.normal(0.6))
    x = features()
    y = model.apply(lsuv(model, KEY, x), x)
    assert_allclose(y.var(), 1, rtol=1e-4)
    with pytest.raises(InputError, match="not finite"):
        lsuv(nn.Dense(50, bias_init=nn.initializers.normal(2.0)), KEY, x)


class Recurrent(nn.Module):
    """One layer for all the steps of a scan: its kernel cannot depend on what happens inside."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16)(x)
        x, _ = scan(Unit, 5, variable_axes={}, variable_broadcast="params", split_rngs={"params": False})()(x, None)
        return nn.Dense(4)(x)


class Lanes(nn.Module):
    shared: bool

    @nn.compact
    def __call__(self, x):  # [batch, features]
        axes = {"params": None} if self.shared else {"params": 0}
        size = None if self.shared else 3
        dense = nn.vmap(
            nn.Dense,
            in_axes=0 if self.shared else None,
            variable_axes=axes,
            split_rngs={"params": not self.shared},
            axis_size=size,
        )
        return nn.Dense(4)(dense(9)(x))


@pytest.mark.parametrize("method", ["one_pass", "iterative"])
@pytest.mark.parametrize("model", [Recurrent(), Lanes(shared=True), Lanes(shared=False)])
def test_lsuv_of_layers_under_a_shared_or_mapped_transformation(model, method):
    reached = {}
    variables = lsuv(model, KEY, features(), method=method, tolerance=0.03, report=reached.update)
    for values in reached.values():
        assert np.abs(np.asarray(values) - 1).max() <= 0.031
    again = output_variances(model, variables, features())
    for path, values in again.items():
        assert_allclose(values, reached[path], rtol=1e-3)


def test_what_a_scans_steps_share_is_measured_over_all_of_them():
    model, x = Recurrent(), features()
    variables = lsuv(model, KEY, x)
    params = jax.tree.map(np.asarray, variables["params"])
    h, outputs = np.asarray(x) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], []
    for _ in range(5):
        outputs.append(h @ params["ScanUnit_0"]["Dense_0"]["kernel"])
        h = np.maximum(outputs[-1], 0)
    assert_allclose(output_variances(model, variables, x)["ScanUnit_0/Dense_0"], np.var(outputs), rtol=1e-4)


class Homemade(nn.Module):
    """A layer of a user's own, with its activation inside."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.ones, (x.shape[-1], 7))
        return nn.softplus(x @ kernel)


def test_lsuv_of_a_users_own_layer_in_steps():
    model = nn.Sequential([Homemade(), nn.Dense(3)])
    y = captured(model, variables := lsuv(model, KEY, features(), method="iterative", tolerance=0.01), features())
    assert abs(y[("layers_0",)].var() - 1) < 0.01
    assert shapes(variables) == shapes(model.init(KEY, features()))


def test_lsuv_of_a_zoo_network_and_with_dropout():
    model = zoo.create("cifar_plain20", width=4)
    variables = lsuv(model, KEY, images(), train=True)
    assert set(variables) == {"params", "batch_stats"}
    for values in output_variances(model, variables, images(), train=True).values():
        assert_allclose(values, 1, atol=1e-3)


def test_the_same_key_gives_the_same_kernels_and_another_others():
    one, two, three = (flatten_dict(lsuv(MLP(), key, features())["params"]) for key in (KEY, KEY, jax.random.key(8)))
    assert all(np.array_equal(one[path], two[path]) for path in one)
    assert not np.array_equal(one["Dense_0", "kernel"], three["Dense_0", "kernel"])
    units = initialized(lsuv, "scanned")[0]["params"]["ScanCheckpointUnit_0"]["Dense_0"]["kernel"]
    assert np.abs(units[0] / units[0].std() - units[1] / units[1].std()).max() > 0.1


class Dying(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, bias_init=nn.initializers.constant(-100.0), name="killer")(x)
        return nn.Dense(4, name="dead")(nn.relu(x))


@pytest.mark.parametrize("method", [lsuv, functools.partial(lsuv, method="iterative"), within_layer])
def test_a_layer_without_variance_is_named(method):
    with pytest.raises(InputError, match="layer Dense_0: its output has zero variance"):
        method(MLP(), KEY, jnp.ones((8, 12)))
    with pytest.raises(InputError, match="unit 1 of 1000|layer Dense_0"):
        method(Scanned(), KEY, jnp.zeros((8, 12)))
    if method is not within_layer:  # which sets the biases
        with pytest.raises(InputError, match="layer dead: its output has zero variance"):
            method(Dying(), KEY, features())
    with pytest.raises(InputError, match="layer Dense_0: its output is not finite"):
        method(MLP(), KEY, features().at[0, 0].set(jnp.nan))


def test_arguments_that_cannot_work_are_refused():
    for wrong in ({"method": "two_pass"}, {"tolerance": 0.0}, {"max_iterations": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            lsuv(MLP(), KEY, features(), **wrong)
    with pytest.raises(InputError, match="no layer with a kernel"):
        lsuv(nn.LayerNorm(), KEY, features())
    with pytest.raises(InputError, match="share its parameters"):
        within_layer(Recurrent(), KEY, features())
    with pytest.raises(InputError, match="too few for 30 clusters"):
        kmeans_kernels(MLP(), KEY, features(batch=20))
    with pytest.raises(InputError, match="inputs are not known"):
        pca_kernels(Homemade(), KEY, features())
    with pytest.raises(InputError, match="damping"):
        between_layer(MLP(), KEY, features(), damping=0.0)


# Within a layer

LEARNED = [within_layer, pca_kernels, kmeans_kernels]


@pytest.mark.parametrize("method", LEARNED)
@pytest.mark.parametrize("name", ["mlp", "cnn", "branchy", "grouped", "volumes"])
def test_every_output_has_mean_0_and_variance_1(method, name):
    model, x, call = NETS[name]
    x = jnp.concatenate([x, 0.5 - x[:, ::-1]] * 2)
    variables = method(model, KEY, x, **call)
    for path, y in captured(model, variables, x, **call).items():
        rows = y.reshape(-1, y.shape[-1])
        assert_allclose(rows.mean(0), 0, atol=1e-3, err_msg=str(path))
        assert_allclose(rows.var(0), 1, atol=1e-2, err_msg=str(path))


def test_within_layer_inside_a_scan_and_without_bias():
    model, x = Scanned(20), features()
    params = jax.tree.map(np.asarray, within_layer(model, KEY, x)["params"])
    h = np.asarray(x) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    for unit in range(20):
        dense = jax.tree.map(lambda a, unit=unit: a[unit], params["ScanCheckpointUnit_0"]["Dense_0"])
        h = h @ dense["kernel"] + dense["bias"]
        assert_allclose(h.mean(0), 0, atol=1e-3)
        assert_allclose(h.var(0), 1, atol=1e-3)
        h = np.maximum(h, 0)
    y = (no_bias := nn.Dense(5, use_bias=False)).apply(within_layer(no_bias, KEY, x), x)
    assert_allclose(y.var(0), 1, atol=1e-4)


def test_within_layer_keeps_the_directions_of_the_models_own_initializer():
    model, x = MLP(), features()
    own = model.init(KEY, x)["params"]["Dense_0"]["kernel"]
    kernel = within_layer(model, KEY, x)["params"]["Dense_0"]["kernel"]
    ratio = np.asarray(kernel / own)
    assert_allclose(ratio, np.broadcast_to(ratio[:1], ratio.shape), rtol=1e-4)


def test_pca_kernels_are_the_principal_components_of_patches():
    x = jax.image.resize(images(32), (32, 16, 16, 3), "linear")  # smooth: patches are correlated
    model = nn.Conv(10, (3, 3), strides=2, padding="VALID")
    kernel = np.asarray(pca_kernels(model, KEY, x)["params"]["kernel"], np.float64).reshape(27, 10)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(x, np.float64), (3, 3), axis=(1, 2))[:, ::2, ::2]
    patches = np.moveaxis(windows, 3, 5).reshape(-1, 27)
    variances, vectors = np.linalg.eigh(np.cov(patches.T, bias=True))
    expected = vectors[:, ::-1][:, :10] / np.sqrt(variances[::-1][:10])
    signs = np.sign((expected * kernel).sum(0))
    assert_allclose(kernel, expected * signs, rtol=1e-2, atol=1e-2)
    # More outputs than directions: the rest are whitened rotations.
    wide = nn.Dense(20)
    y = wide.apply(pca_kernels(wide, KEY, features(size=6)), features(size=6))
    assert_allclose(np.cov(y[:, :6].T, bias=True), np.eye(6), atol=1e-3)
    assert_allclose(y.var(0), 1, atol=1e-3)


def test_kmeans_kernels_find_clusters():
    rng = np.random.default_rng(0)
    centres = np.eye(4, 8) * 10
    which = rng.integers(4, size=400)
    x = jnp.asarray(centres[which] + rng.standard_normal((400, 8)), jnp.float32)
    y = np.asarray(nn.Dense(4).apply(kmeans_kernels(nn.Dense(4), KEY, x), x))
    best = y.argmax(1)
    assert len(set(zip(which, best))) == len(set(best)) == 4  # each cluster has an output of its own


# Between layers


class Homogeneous(nn.Module):
    @nn.compact
    def __call__(self, x):
        for scale in (0.1, 5.0, 1.0):
            dense = nn.Dense(32, kernel_init=nn.initializers.normal(scale), bias_init=nn.initializers.normal(scale))
            x = nn.relu(dense(x))
        return nn.Dense(3, kernel_init=nn.initializers.normal(0.02))(x)


@pytest.mark.parametrize("damping", [0.5, 1.0])
def test_between_layer_makes_rates_equal_and_keeps_the_function(damping):
    model, x, rates = Homogeneous(), features(256), {}
    before = model.init(KEY, x)
    after = between_layer(
        model, KEY, x, variables=before, iterations=50, damping=damping, tolerance=1e-3, report=rates.update
    )
    assert_allclose(list(rates.values()), 1, atol=1e-3)
    y = model.apply(before, x)
    assert_allclose(model.apply(after, x), y, rtol=1e-3, atol=1e-3 * np.abs(y).max())
    kernel = before["params"]["Dense_0"]["kernel"]
    assert np.abs(after["params"]["Dense_0"]["kernel"] / kernel - 1).max() > 0.1

    # The rates themselves, example by example, with the outputs' own gradients.
    def squared(params, example):
        jacobian = jax.jacrev(lambda params: model.apply({"params": params}, example[None])[0])(params)
        return {name: jnp.square(layer["kernel"]).sum() for name, layer in jacobian.items()}

    squares = jax.tree.map(jnp.mean, jax.vmap(squared, (None, 0))(after["params"], x))
    exact = [np.sqrt(squares[n]) / np.linalg.norm(after["params"][n]["kernel"]) for n in squares]
    assert_allclose(
        exact / np.exp(np.mean(np.log(exact))), 1, atol=0.15
    )  # eight random functions for the mean over all


@pytest.mark.parametrize("name", ["cnn", "scanned"])
def test_between_layer_in_convolutions_and_scans(name):
    model, x, _ = (Scanned(30), features(), {}) if name == "scanned" else NETS[name]
    rates = {}
    variables = between_layer(model, KEY, x, iterations=40, tolerance=0.1, report=rates.update)
    values = np.concatenate([np.ravel(rate) for rate in rates.values()])
    assert len(values) == (32 if name == "scanned" else 4)
    assert np.abs(values - 1).max() <= 0.1
    assert shapes(variables) == shapes(jax.eval_shape(lambda: model.init(KEY, x)))


def test_between_layer_brings_rates_together_where_it_cannot_make_them_equal():
    model, x, call = NETS["encoder"]
    before, after = {}, {}
    between_layer(model, KEY, x, tolerance=1e3, report=before.update, **call)
    between_layer(model, KEY, x, iterations=5, report=after.update, **call)
    assert np.std(np.log(list(after.values()))) < 0.5 * np.std(np.log(list(before.values())))


# Looks linear


class CReLUNet(nn.Module):
    scan: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3))(x)
        if self.scan:
            x, _ = scan(CReLUUnit, 20)()(x, None)
        x = nn.Conv(16, (3, 3), strides=2)(crelu(x))
        x = nn.Conv(16, (2, 2), feature_group_count=2, padding="VALID")(crelu(x))
        x = nn.avg_pool(crelu(x), (2, 2), (1, 1))
        x = nn.Dense(20)(x.reshape(len(x), -1))
        return nn.Dense(5)(crelu(x))


class CReLUUnit(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Conv(8, (3, 3))(crelu(x)), None


@pytest.mark.parametrize("scanned", [False, True])
def test_a_whole_crelu_network_looks_linear(scanned):
    model = CReLUNet(scanned)
    variables = looks_linear(model, KEY, images())
    a, b = images(seed=1), images(seed=2)
    f = jax.jit(lambda x: model.apply(variables, x))
    assert np.abs(f(a)).max() > 0.1
    scale = np.abs(f(a)).max()
    assert_allclose(f(2 * a - 3 * b), 2 * f(a) - 3 * f(b), atol=1e-4 * scale)
    # It can fail: the same net with its own initializers is far from linear.
    own = model.init(KEY, images())
    assert np.abs(model.apply(own, -a) + model.apply(own, a)).max() > 0.01


def test_a_deep_looks_linear_network_keeps_norms_forward_and_backward():
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(16)(x)
            for _ in range(6):
                x = nn.Dense(16)(crelu(x))
            return x

    x = features(size=16)
    variables = looks_linear(Deep(), KEY, x)
    f = jax.jit(lambda x: Deep().apply(variables, x))
    assert_allclose(np.linalg.norm(f(x), axis=1), np.linalg.norm(x, axis=1), rtol=1e-3)
    jacobian = jax.jacrev(lambda x: f(x[None])[0])(x[0])
    assert_allclose(jacobian @ jacobian.T, np.eye(16), atol=1e-3)


def test_a_kernel_that_is_made_from_other_parameters_is_refused():
    class Normalized(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.WeightNorm(nn.Dense(4))(x)

    with pytest.raises(InputError, match="layer Dense_0: its kernel is made from other parameters"):
        lsuv(Normalized(), KEY, features())
