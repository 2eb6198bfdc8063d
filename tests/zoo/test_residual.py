"""Residual networks: counts in closed form, and every number against an independent PyTorch forward pass."""

import chex
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import zoo
from deepjax.errors import InputError
from deepjax.units import Add, Plain, unstack_units
from deepjax.zoo.residual import imagenet, resnet
from helpers import draw_variables, random_arrays

KEY = jax.random.key(0)


def abstract(model, size=32):
    return jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, size, size, 3)), train=False))


def parameter_count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(abstract(model)["params"]))


# Counts


def conv_norm(window, features_in, features):
    return window**2 * features_in * features + 2 * features


def cifar_count(depth, width, shortcut, classes, projections=True):
    n, count, features_in = (depth - 2) // 6, conv_norm(3, 3, width), width
    for features in (width, 2 * width, 4 * width):
        for unit in range(n):
            count += conv_norm(3, features_in, features) + conv_norm(3, features, features)
            if projections and (shortcut == "C" or (shortcut == "B" and unit == 0 and features != width)):
                count += conv_norm(1, features_in, features)
            features_in = features
    return count + (features_in + 1) * classes


@pytest.mark.parametrize("shortcut", "ABC")
@pytest.mark.parametrize(("depth", "width", "classes"), [(8, 16, 10), (14, 5, 3), (332, 24, 100)])
def test_cifar_counts_in_closed_form(depth, width, classes, shortcut):
    options = {"num_classes": classes, "depth": depth, "width": width, "shortcut": shortcut}
    assert parameter_count(zoo.create("cifar_resnet", **options)) == cifar_count(depth, width, shortcut, classes)
    plain = cifar_count(depth, width, shortcut, classes, projections=False)
    assert parameter_count(zoo.create("cifar_plain", **options)) == plain


@pytest.mark.parametrize("shortcut", "ABC")
@pytest.mark.parametrize(("depth", "width"), [(11, 16), (29, 6)])
def test_preact_counts_in_closed_form(depth, width, shortcut):
    count, features_in = 27 * width, width
    for w in (width, 2 * width, 4 * width):
        for unit in range((depth - 2) // 9):
            # norm before each convolution
            count += 2 * features_in + features_in * w + 2 * w + 9 * w * w + 2 * w + 4 * w * w
            count += features_in * 4 * w if shortcut == "C" or (shortcut == "B" and unit == 0) else 0
            features_in = 4 * w
    count += 2 * features_in + (features_in + 1) * 10
    assert parameter_count(zoo.create("cifar_preact", depth=depth, width=width, shortcut=shortcut)) == count


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("shortcut", "ABC")
@pytest.mark.parametrize(("depths", "width"), [((1, 2), 8), ((2, 1, 3, 1, 2), 4)])
def test_imagenet_counts_in_closed_form(depths, width, shortcut, bottleneck):
    count, features_in = conv_norm(7, 3, width), width
    for stage, depth in enumerate(depths):
        w = width * 2**stage
        features = 4 * w if bottleneck else w
        for unit in range(depth):
            if bottleneck:
                count += conv_norm(1, features_in, w) + conv_norm(3, w, w) + conv_norm(1, w, features)
            else:
                count += conv_norm(3, features_in, w) + conv_norm(3, w, w)
            changes = unit == 0 and (stage > 0 or features_in != features)
            count += conv_norm(1, features_in, features) if shortcut == "C" or (shortcut == "B" and changes) else 0
            features_in = features
    count += (features_in + 1) * 7
    assert parameter_count(resnet(depths, 7, bottleneck=bottleneck, width=width, shortcut=shortcut)) == count


# Numbers


def conv_and_norm_of(torch, tree, moments, train):
    """Functions that apply a convolution and a batch norm with our variables to x [batch, features, H, W]."""
    f = torch.nn.functional

    def conv(x, path, stride=1):
        kernel, bias = tree[path + "/kernel"], tree.get(path + "/bias")
        groups = x.shape[1] // kernel.shape[2]
        return f.conv2d(x, kernel.permute(3, 2, 0, 1), bias, stride, kernel.shape[0] // 2, groups=groups)

    def norm(x, path):
        mean, var = moments[path + "/mean"].clone(), moments[path + "/var"].clone()
        y = f.batch_norm(x, mean, var, tree[path + "/scale"], tree[path + "/bias"], train, 0.1, 1e-5)
        if train:
            moments[path + "/mean"], moments[path + "/var"] = mean, var
        return y

    return conv, norm


def torch_forward(torch, tree, moments, x, *, depths, kind, shortcut, preact, last, stem, train):
    """The residual network as its papers draw it. kind: basic, bottleneck, or paper; shortcut None: a plain net.

    last: the norm follows the ReLU instead of preceding it.
    """
    f = torch.nn.functional
    conv, norm = conv_and_norm_of(torch, tree, moments, train)

    def finish(x, path):
        return norm(f.relu(x), path) if last else f.relu(norm(x, path))

    x = conv(x, "stem_conv", 2 if stem == "imagenet" else 1)
    if not preact:
        x = finish(x, "stem_norm")
    if stem == "imagenet":
        x = f.max_pool2d(x, 3, 2, 1)
    for stage, depth in enumerate(depths):
        for i in range(depth):
            unit = f"stage{stage + 1}_first" if i == 0 else f"stage{stage + 1}_rest/{i - 1}"
            stride = 2 if stage > 0 and i == 0 else 1
            layers = 2 if kind == "basic" else 3
            strided = 2 if kind == "bottleneck" else 1
            features = tree[f"{unit}/branch/conv{layers}/kernel"].shape[-1]
            changes = stride == 2 or features != x.shape[1]
            if preact and changes:
                x = f.relu(norm(x, f"{unit}/before/norm"))
            skip = x
            if shortcut == "A" and changes:
                skip = f.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, features - x.shape[1]))
            elif shortcut == "C" or (shortcut == "B" and changes):
                skip = conv(x, f"{unit}/shortcut/conv", stride)
                skip = skip if preact else norm(skip, f"{unit}/shortcut/norm")
            y = x
            for layer in range(1, layers + 1):
                if preact and not (changes and layer == 1):
                    y = f.relu(norm(y, f"{unit}/branch/norm{layer}"))
                y = conv(y, f"{unit}/branch/conv{layer}", stride if layer == strided else 1)
                if not preact:
                    y = (finish if layer < layers else norm)(y, f"{unit}/branch/norm{layer}")
            x = y if shortcut is None else skip + y
            x = x if preact else f.relu(x)
    x = f.relu(norm(x, "final/norm")) if preact else x
    return x.mean((2, 3)) @ tree["head/kernel"] + tree["head/bias"]


def unstack(tree):
    """Our tree -> {path: array}, with stage1_rest/unit/... split into stage1_rest/0/..., stage1_rest/1/..."""
    flat = {}
    for path, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items():
        if "_rest/unit/" in path:
            flat |= {path.replace("/unit/", f"/{i}/"): np.array(v) for i, v in enumerate(leaf)}
        else:
            flat[path] = np.array(leaf)
    return flat


# test -> name (None: `imagenet`), options, kind (paper: bottlenecks whose first 1x1 has the stride), shortcut
CASES = {
    "cifar_resnet A": ("cifar_resnet", {"width": 4, "shortcut": "A"}, "basic", "A"),
    "cifar_resnet C": ("cifar_resnet", {"width": 4, "shortcut": "C"}, "basic", "C"),
    "cifar_plain": ("cifar_plain", {"width": 4}, "basic", None),
    "cifar_preact A": ("cifar_preact", {"width": 4, "shortcut": "A"}, "bottleneck", "A"),
    "cifar_preact B": ("cifar_preact", {"width": 4, "shortcut": "B"}, "bottleneck", "B"),
    "cifar_preact C": ("cifar_preact", {"width": 4, "shortcut": "C"}, "bottleneck", "C"),
    "paper": (None, {"bottleneck": True, "paper_stride": True, "width": 4, "join": Add}, "paper", "B"),
    "plain": (None, {"width": 4, "join": Plain}, "basic", None),
    "wide_resnet": ("wide_resnet", {"widen": 2}, "basic", "B"),
    "cifar_resnet last": ("cifar_resnet", {"width": 4, "shortcut": "B", "order": "last"}, "basic", "B"),
    "imagenet last": (None, {"width": 4, "join": Add, "order": "last"}, "basic", "B"),
    "cifar_resnext": ("cifar_resnext", {"groups": 4, "group_width": 2}, "bottleneck", "B"),
}
DEPTHS = (1, 3)  # of two stages: a unit that changes nothing or the features, one that strides, and a stack of two
FAST = {"cifar_resnet A", "cifar_resnet last", "cifar_preact B"}


@pytest.mark.parametrize("case", [c if c in FAST else pytest.param(c, marks=pytest.mark.slow) for c in CASES])
def test_network_is_torchs(case):
    torch = pytest.importorskip("torch")
    name, options, kind, shortcut = CASES[case]
    stem, preact = "cifar" if name else "imagenet", name in ("cifar_preact", "wide_resnet")
    model = zoo.create(name, num_classes=5, **options) if name else imagenet(DEPTHS, 5, **options)
    model = model.clone(depths=DEPTHS, features=model.features[:2])
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 8, 8, 3) if stem == "cifar" else (8, 16, 16, 3)).astype(np.float32)
    weights = rng.standard_normal((8, 5)).astype(np.float32)
    variables = draw_variables(model, x)
    tx = torch.tensor(np.moveaxis(x, -1, 1).copy(), dtype=torch.float64)

    def torch_tree(collection):
        return {k: torch.tensor(v, dtype=torch.float64) for k, v in unstack(variables[collection]).items()}

    def forward(train):
        tree, moments = torch_tree("params"), torch_tree("batch_stats")
        for leaf in tree.values():
            leaf.requires_grad_()
        call = {"depths": DEPTHS, "kind": kind, "shortcut": shortcut, "preact": preact, "stem": stem, "train": train}
        return torch_forward(torch, tree, moments, tx, last=model.order == "last", **call), tree, moments

    def assert_close(ours, theirs, rtol, path="logits"):
        theirs = theirs.detach().numpy()
        assert_allclose(ours, theirs, rtol=rtol, atol=rtol * np.abs(theirs).max() + 1e-7, err_msg=path)

    @jax.jit
    def run(params):
        def loss(params):
            logits, new = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return (logits * weights).sum(), (logits, new["batch_stats"])

        return model.apply(variables, x, train=False), jax.grad(loss, has_aux=True)(params)

    evaluated, (gradients, (logits, moments)) = jax.device_get(run(variables["params"]))
    assert_close(evaluated, forward(False)[0], 1e-4)
    expected, tree, expected_moments = forward(True)
    (expected * torch.tensor(weights)).sum().backward()
    assert_close(logits, expected, 1e-4)
    ours, moments = unstack(gradients), unstack(moments)
    assert set(ours) == set(tree)
    assert set(moments) == set(expected_moments)
    for path, leaf in tree.items():
        assert_close(ours[path], leaf.grad, 1e-3, path)
    for path, leaf in expected_moments.items():
        assert_close(moments[path], leaf, 1e-4, path)


def test_unrolled_equals_scanned():
    (x,) = random_arrays(0, (4, 8, 8, 3))
    scanned, unrolled = (zoo.create("cifar_resnet", depth=14, width=4, scan=scan) for scan in (True, False))
    variables = draw_variables(scanned, x)
    separate = unstack_units(variables)
    chex.assert_trees_all_equal_shapes_and_dtypes(separate, jax.eval_shape(lambda: unrolled.init(KEY, x, train=False)))
    pairs = ((scanned, variables), (unrolled, separate))
    logits, expected = jax.jit(lambda: [net.apply(tree, x, train=False) for net, tree in pairs])()
    assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    (x,) = random_arrays(0, (8, 16, 16, 3))
    wide, half = (
        zoo.create("cifar_resnet", num_classes=5, depth=8, width=8, dtype=dtype) for dtype in (None, jnp.bfloat16)
    )
    variables = draw_variables(wide, x)
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, jax.eval_shape(lambda: half.init(KEY, x, train=False)))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}

    @jax.jit
    def run():
        return [net.apply(variables, x, train=True, mutable=["batch_stats"]) for net in (half, wide)]

    (logits, new), (expected, _) = jax.device_get(run())
    assert logits.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {np.dtype("float32")}
    error = np.asarray(logits, np.float32) - expected
    assert np.sqrt(np.mean(error**2) / np.mean(expected**2)) < 0.05


# Form


def test_stem_stride_halves_the_resolution():
    model = zoo.create("cifar_resnet", depth=8, stem_stride=2)
    _, state = jax.eval_shape(
        lambda: model.init_with_output(KEY, jnp.zeros((1, 32, 32, 3)), train=False, capture_intermediates=True)
    )
    assert state["intermediates"]["stage3_first"]["__call__"][0].shape == (1, 4, 4, 64)


def test_a_plain_net_has_no_shortcut():
    for shortcut in "ABC":
        params = abstract(imagenet((1, 2), 10, join=Plain, width=4, shortcut=shortcut))["params"]
        assert not any("shortcut" in path for path in flax.traverse_util.flatten_dict(params, sep="/"))


@pytest.mark.parametrize(("paper", "size"), [(False, 8), (True, 4)])
def test_the_paper_strides_in_the_first_convolution(paper, size):
    model = resnet((1, 2), 5, bottleneck=True, paper_stride=paper, width=4)

    def forward():
        return model.init_with_output(KEY, jnp.zeros((1, 32, 32, 3)), train=False, capture_intermediates=True)

    convs = jax.eval_shape(forward)[1]["intermediates"]["stage2_first"]["branch"]
    assert convs["conv1"]["__call__"][0].shape == (1, size, size, 8)
    assert convs["conv2"]["__call__"][0].shape == (1, 4, 4, 8)
    if paper:
        with pytest.raises(InputError, match="torchvision has no such network"):
            model.torch_names()


@pytest.mark.parametrize("depths", [(), (2, 0)])
def test_stages_have_units(depths):
    with pytest.raises(InputError, match="units_per_stage 0"):
        resnet(depths)


def test_errors_of_the_factory():
    with pytest.raises(InputError, match="groups 3 must divide"):
        resnet((1, 1), groups=3)
    with pytest.raises(InputError, match="paper_stride True needs bottlenecks"):
        resnet((1, 1), paper_stride=True)
    with pytest.raises(InputError, match="widen 0"):
        resnet((1, 1), widen=0)
