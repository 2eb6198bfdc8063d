"""Losses against PyTorch and float64 NumPy, in values and gradients; extremes, masks, labels and penalties."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze
from numpy.testing import assert_allclose, assert_array_equal

from deepjax import functional
from deepjax.errors import InputError


def arrays(seed, *shapes):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def distributions(seed, shape):
    weights = np.random.default_rng(seed).random(shape)
    return weights / weights.sum(-1, keepdims=True)


def focal_reference(torch, logits, targets, alpha, gamma):
    """torchvision.ops.sigmoid_focal_loss, reduction "none", written out."""
    p = torch.sigmoid(logits)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    loss = entropy * (1 - p_t) ** gamma
    return loss if alpha is None else (alpha * targets + (1 - alpha) * (1 - targets)) * loss


def kl_reference(torch, student, teacher, temperature):
    log_softmax = partial(torch.nn.functional.log_softmax, dim=-1)
    student, teacher = log_softmax(student / temperature), log_softmax(teacher / temperature)
    kl = torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True)
    return temperature**2 * kl.sum(-1)


def perceptron_reference(torch, logits, labels):
    return logits.amax(-1) - logits.gather(-1, labels[..., None])[..., 0]


def cross_entropy_reference(torch, logits, labels, smoothing=0.0):
    flat = labels.reshape(-1) if labels.ndim < logits.ndim else labels.reshape(-1, logits.shape[-1])
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), flat, label_smoothing=smoothing, reduction="none"
    )
    return loss.reshape(logits.shape[:-1])


def elementwise(name, **options):
    return lambda torch, x, y: getattr(torch.nn.functional, name)(x, y, reduction="none", **options)


# name: (ours, PyTorch's, kind of the second argument)
LOSSES = {
    "cross_entropy, labels": (functional.cross_entropy, cross_entropy_reference, "labels"),
    "cross_entropy, smooth labels": (
        partial(functional.cross_entropy, smoothing=0.1),
        partial(cross_entropy_reference, smoothing=0.1),
        "labels",
    ),
    "cross_entropy, soft": (functional.cross_entropy, cross_entropy_reference, "soft"),
    "cross_entropy, smooth soft": (
        partial(functional.cross_entropy, smoothing=0.3),
        partial(cross_entropy_reference, smoothing=0.3),
        "soft",
    ),
    "perceptron": (functional.perceptron, perceptron_reference, "labels"),
    "kl 1": (partial(functional.kl_distillation, temperature=1.0), partial(kl_reference, temperature=1.0), "logits"),
    "kl 4": (partial(functional.kl_distillation, temperature=4.0), partial(kl_reference, temperature=4.0), "logits"),
    "binary_cross_entropy": (
        functional.binary_cross_entropy,
        elementwise("binary_cross_entropy_with_logits"),
        "probabilities",
    ),
    "focal": (functional.focal, partial(focal_reference, alpha=0.25, gamma=2.0), "probabilities"),
    "focal, no weights": (
        partial(functional.focal, alpha=None, gamma=1.5),
        partial(focal_reference, alpha=None, gamma=1.5),
        "bits",
    ),
    "focal, gamma 0": (
        partial(functional.focal, alpha=0.9, gamma=0),
        partial(focal_reference, alpha=0.9, gamma=0),
        "bits",
    ),
    "mse": (functional.mse, elementwise("mse_loss"), "logits"),
    "mae": (functional.mae, elementwise("l1_loss"), "logits"),
    "huber": (functional.huber, elementwise("huber_loss"), "logits"),
    "huber 0.3": (partial(functional.huber, delta=0.3), elementwise("huber_loss", delta=0.3), "logits"),
    "smooth_l1": (functional.smooth_l1, elementwise("smooth_l1_loss"), "logits"),
    "smooth_l1 0.3": (partial(functional.smooth_l1, beta=0.3), elementwise("smooth_l1_loss", beta=0.3), "logits"),
    "smooth_l1 0": (partial(functional.smooth_l1, beta=0), elementwise("smooth_l1_loss", beta=0.0), "logits"),
}

VARIANTS = {"cross_entropy, smooth soft", "kl 4", "focal, no weights", "focal, gamma 0", "huber 0.3", "smooth_l1 0.3"}
PATHS = [name for name in LOSSES if name not in VARIANTS]


def second(kind, shape, seed=7):
    """The second argument of a loss of logits of this shape."""
    rng = np.random.default_rng(seed)
    return {
        "labels": lambda: rng.integers(0, shape[-1], shape[:-1]),
        "soft": lambda: distributions(seed, shape).astype(np.float32),
        "logits": lambda: rng.standard_normal(shape).astype(np.float32),
        "probabilities": lambda: rng.random(shape).astype(np.float32),
        "bits": lambda: rng.integers(0, 2, shape).astype(np.float32),
    }[kind]()


def value_and_gradient(loss, logits, targets):
    """Losses, and the gradient of their sum, each with another weight, with respect to the logits."""

    def total(logits, targets):
        losses = loss(logits, targets)
        return (losses * jnp.arange(1, losses.size + 1, dtype=losses.dtype).reshape(losses.shape)).sum(), losses

    gradient, losses = jax.jit(jax.grad(total, has_aux=True))(logits, targets)
    return losses, gradient


def torch_value_and_gradient(torch, loss, logits, targets):
    z = torch.tensor(np.asarray(logits, np.float64), requires_grad=True)
    integers = np.issubdtype(targets.dtype, np.integer)
    losses = loss(torch, z, torch.tensor(targets if integers else np.asarray(targets, np.float64)))
    (losses * torch.arange(1, losses.numel() + 1).reshape(losses.shape)).sum().backward()
    return losses.detach().numpy(), z.grad.numpy()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12), ("bfloat16", 1e-5)])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_torchs(name, dtype, tolerance):
    torch = pytest.importorskip("torch")
    ours, theirs, kind = LOSSES[name]
    with jax.enable_x64(dtype == "float64"):
        (logits,) = arrays(0, (3, 4, 7))
        logits, targets = jnp.asarray(2 * logits, dtype), second(kind, logits.shape)
        losses, gradient = value_and_gradient(ours, logits, targets)
        assert losses.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)  # bfloat16 is widened first
        assert gradient.dtype == logits.dtype
        expected, expected_gradient = torch_value_and_gradient(torch, theirs, logits, targets)
        assert_allclose(losses, expected, rtol=tolerance, atol=tolerance)
        if dtype == "bfloat16":
            gradient, tolerance = gradient.astype(jnp.float32), 2**-8
        assert_allclose(gradient, expected_gradient, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_finite_and_right_for_extreme_logits(name):
    torch = pytest.importorskip("torch")
    ours, theirs, kind = LOSSES[name]
    row = [1e4, -1e4, 0.0, 1.0]
    logits = np.array([row, row[::-1], [1e4, 1e4, -1e4, -1e4], [-1e4, -1e4, -1e4, 1e4]], np.float32)
    logits = np.tile(logits, (3, 1))
    targets = second(kind, logits.shape)
    if kind == "logits":
        targets = logits[:, ::-1] + targets
    losses, gradient = value_and_gradient(ours, logits, targets)
    assert jnp.isfinite(losses).all()
    assert jnp.isfinite(gradient).all()
    expected, expected_gradient = torch_value_and_gradient(torch, theirs, logits, targets)
    assert_allclose(losses, expected, rtol=1e-5, atol=1e-3)
    assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", PATHS)
def test_any_number_of_leading_axes_and_vmap(name):
    ours, _, kind = LOSSES[name]
    (logits,) = arrays(1, (2, 3, 5))
    targets = second(kind, logits.shape)
    forms = jax.jit(lambda x, y: (ours(x, y), jax.vmap(jax.vmap(ours))(x, y), ours(x[1, 2], y[1, 2])))
    losses, mapped, one = forms(logits, targets)
    assert losses.shape == ((2, 3) if kind in ("labels", "soft") or name.startswith("kl") else (2, 3, 5))
    assert_allclose(mapped, losses, rtol=1e-6, atol=1e-7)
    assert_allclose(one, losses[1, 2], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", PATHS)
def test_masked_entries_do_not_count_whatever_they_hold(name):
    ours, _, kind = LOSSES[name]
    (logits,) = arrays(2, (6, 2, 5))
    targets = second(kind, logits.shape)
    expected, expected_gradient = value_and_gradient(ours, logits, targets)
    mask = np.array([True, True, False, True, False, True])
    logits[~mask] = np.nan
    targets[~mask] = -1 if kind == "labels" else np.nan
    losses, gradient = value_and_gradient(partial(ours, mask=mask), logits, targets)
    assert_allclose(losses[mask], expected[mask], rtol=1e-6)
    assert_allclose(gradient[mask], expected_gradient[mask], rtol=1e-6)
    assert_array_equal(losses[~mask], 0)
    assert_array_equal(gradient[~mask], 0)


@pytest.mark.parametrize("loss", [functional.mse, partial(functional.kl_distillation, temperature=1.0)])
def test_a_mask_of_the_results_own_shape(loss):
    logits, targets = arrays(3, (4, 2, 5), (4, 2, 5))
    losses = loss(logits, targets)
    mask = np.random.default_rng(4).random(losses.shape) < 0.5
    assert_allclose(loss(logits, targets, mask=mask), np.where(mask, losses, 0), rtol=1e-6)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("mask", [np.ones(5, bool), np.ones(6), np.ones((6, 1), bool), np.ones((6, 2, 5, 1), bool)])
def test_mask_errors(name, mask):
    ours, _, kind = LOSSES[name]
    (logits,) = arrays(2, (6, 2, 5))
    with pytest.raises(InputError, match=f"{ours.func.__name__ if isinstance(ours, partial) else ours.__name__}: mask"):
        ours(logits, second(kind, logits.shape), mask=mask)


# Cross entropy


def test_targets_of_any_dtype_are_the_labels():
    (logits,) = arrays(0, (4, 3))
    labels = jnp.array([2, 0, 1, 1])
    for smoothing in (0.0, 0.2, 1.0):
        expected = functional.cross_entropy(logits, labels, smoothing=smoothing)
        for dtype in (jnp.float32, jnp.bfloat16, jnp.int32, jnp.bool):
            targets = jax.nn.one_hot(labels, 3, dtype=dtype)
            assert_allclose(functional.cross_entropy(logits, targets, smoothing=smoothing), expected, rtol=1e-6)
        if smoothing:
            targets = functional.smooth_labels(labels, smoothing, 3)
            assert_allclose(functional.cross_entropy(logits, targets), expected, rtol=1e-6)


@pytest.mark.parametrize("loss", [functional.cross_entropy, functional.perceptron])
@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int32, jnp.uint32])
def test_labels_of_any_integer_dtype(loss, dtype):
    (logits,) = arrays(0, (3, 1000))
    labels = jnp.array([0, 100, 127])
    assert_array_equal(loss(logits, labels.astype(dtype)), loss(logits, labels))


@pytest.mark.parametrize(
    "loss", [functional.cross_entropy, partial(functional.cross_entropy, smoothing=0.1), functional.perceptron]
)
def test_labels_outside_of_the_classes_give_nan(loss):
    (logits,) = arrays(0, (5, 3))
    labels = jnp.array([0, -1, 3, 2, -100])
    losses, gradient = value_and_gradient(loss, logits, labels)
    assert jnp.isnan(losses).tolist() == [False, True, True, False, True]
    assert jnp.isfinite(gradient).all()  # the value stops training
    masked = loss(logits, labels, mask=labels >= 0)  # PyTorch's ignore_index
    assert jnp.isnan(masked).tolist() == [False, False, True, False, False]


def test_a_class_with_logit_minus_infinity_is_left_out():
    (logits,) = arrays(0, (4, 5))
    barred = np.concatenate([logits, np.full((4, 2), -np.inf, np.float32)], -1)
    soft = distributions(0, (4, 5)).astype(np.float32)
    for targets in (np.array([0, 3, 4, 1]), soft):
        expected, expected_gradient = value_and_gradient(functional.cross_entropy, logits, targets)
        targets = np.pad(targets, [(0, 0), (0, 2)]) if targets.ndim == 2 else targets
        losses, gradient = value_and_gradient(functional.cross_entropy, barred, targets)
        assert_allclose(losses, expected, rtol=1e-6)
        assert_allclose(gradient[:, :5], expected_gradient, rtol=1e-5, atol=1e-6)


def test_smooth_labels():
    targets = functional.smooth_labels(jnp.array([[1], [0]]), 0.2, 4)
    assert_allclose(targets, [[[0.05, 0.85, 0.05, 0.05]], [[0.85, 0.05, 0.05, 0.05]]], rtol=1e-6)


@pytest.mark.parametrize(
    ("labels", "smoothing", "message"),
    [
        (jnp.zeros(3, jnp.int32), 0.0, "do not match"),
        (jnp.zeros((2, 1), jnp.int32), 0.0, "do not match"),
        (jnp.zeros((2, 4)), 0.0, r"or targets of shape \(2, 5\)"),
        (jnp.zeros(2), 0.0, "must be integers"),
        (jnp.zeros(2), 0.1, "must be integers"),
        (jnp.zeros(2, bool), 0.1, "must be integers"),
        (jnp.zeros(2, jnp.int32), -0.1, "smoothing .* of labels must be in"),
        (jnp.zeros(2, jnp.int32), 1.1, "smoothing .* of labels must be in"),
        (jnp.zeros((2, 5)), 1.1, "smoothing .* of labels must be in"),
        (jnp.zeros(2, jnp.int32), float("nan"), "smoothing .* of labels must be in"),
    ],
)
def test_cross_entropy_errors(labels, smoothing, message):
    with pytest.raises(InputError, match=message):
        functional.cross_entropy(jnp.ones((2, 5)), labels, smoothing=smoothing)


def test_a_scalar_has_no_classes():
    for loss in (functional.cross_entropy, functional.perceptron):
        with pytest.raises(InputError, match="do not match"):
            loss(jnp.float32(1), jnp.array(0))
    with pytest.raises(InputError, match="classes axis"):
        functional.kl_distillation(jnp.float32(1), jnp.float32(1), temperature=1.0)


# The others


def test_perceptron_of_two_classes_is_the_binary_one():
    (logits,) = arrays(0, (50, 2))
    labels = np.random.default_rng(1).integers(0, 2, 50)
    expected = optax.losses.perceptron_loss(logits[:, 1] - logits[:, 0], 2 * labels - 1)
    assert_allclose(functional.perceptron(logits, labels), expected, rtol=1e-6, atol=1e-7)


def test_perceptrons_gradient_moves_only_the_winner_and_the_label():
    gradient = jax.grad(lambda z: functional.perceptron(z, jnp.array([0, 1])).sum())(
        jnp.array([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    )
    assert gradient.tolist() == [[-1, 1, 0], [0, 0, 0]]


def test_distillation_flows_into_the_teacher_as_in_torch():
    torch = pytest.importorskip("torch")
    student, teacher = arrays(0, (4, 6), (4, 6))
    ours = jax.grad(lambda t: functional.kl_distillation(student, t, temperature=3.0).sum())(teacher)
    wide = torch.tensor(teacher.astype(np.float64), requires_grad=True)
    kl_reference(torch, torch.tensor(student), wide, 3.0).sum().backward()
    assert_allclose(ours, wide.grad, rtol=1e-4, atol=1e-6)
    assert_allclose(functional.kl_distillation(student, student + 2, temperature=3.0), 0, atol=1e-5)


def test_distillation_at_high_temperature_compares_centred_logits():
    """Hinton et al. 2015, eq. 4: the gradient tends to the difference of the zero-mean logits over the classes."""
    student, teacher = (a - a.mean(-1, keepdims=True) for a in arrays(0, (4, 6), (4, 6)))
    gradient = jax.grad(lambda s: functional.kl_distillation(s, teacher, temperature=200.0).sum())(student)
    assert_allclose(gradient, (student - teacher) / 6, rtol=0.05, atol=5e-3)


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_focal_of_certain_and_right_has_a_finite_gradient(gamma):
    """There (1 - p_t)^gamma is 0^gamma, and its own derivative infinite."""
    logits = jnp.array([1e4, -1e4, 200.0, -200.0])
    losses, gradient = value_and_gradient(partial(functional.focal, gamma=gamma), logits, jnp.array([1, 0, 1, 0]))
    assert_array_equal(losses, 0)
    assert_array_equal(gradient, 0)


TWO = [partial(functional.kl_distillation, temperature=1.0), functional.binary_cross_entropy, functional.focal]
TWO += [functional.mse, functional.mae, functional.huber, functional.smooth_l1]


@pytest.mark.parametrize("loss", TWO)
@pytest.mark.parametrize("shapes", [((3, 2), (2,)), ((3, 1), (3,)), ((3,), ())])
def test_shapes_that_would_broadcast_are_refused(loss, shapes):
    with pytest.raises(InputError, match="must have the same shape"):
        loss(*(jnp.ones(shape) for shape in shapes))


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (functional.huber, {"delta": 0}, "delta 0 must"),
        (functional.huber, {"delta": -1.0}, "delta -1.0"),
        (functional.smooth_l1, {"beta": -1.0}, "beta -1.0"),
        (functional.smooth_l1, {"beta": float("inf")}, "beta inf"),
        (functional.kl_distillation, {"temperature": 0.0}, "temperature 0.0"),
        (functional.kl_distillation, {"temperature": float("nan")}, "temperature nan"),
        (functional.focal, {"alpha": -1}, "or None"),
        (functional.focal, {"alpha": 1.5}, "alpha 1.5"),
        (functional.focal, {"gamma": -0.5}, "gamma -0.5"),
    ],
)
def test_options_out_of_range(loss, options, message):
    with pytest.raises(InputError, match=message):
        loss(jnp.ones((2, 3)), jnp.ones((2, 3)), **options)


# Penalties


def parameters(dtype=np.float32):
    kernel, stacked, bias, scale = arrays(0, (4, 3), (5, 3, 3, 2), (3,), (3,))
    tree = {"dense": {"kernel": kernel, "bias": bias}, "norm": {"scale": scale}, "rest": {"unit": {"kernel": stacked}}}
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)


@pytest.mark.parametrize("container", [dict, freeze])
def test_penalties_see_kernels_only(container):
    params = parameters()
    kernels = [np.asarray(params["dense"]["kernel"]), np.asarray(params["rest"]["unit"]["kernel"])]
    tree = container(params)
    assert_allclose(functional.l1_penalty(tree), sum(np.abs(k).sum() for k in kernels), rtol=1e-6)
    assert_allclose(functional.l2_penalty(tree), sum((k**2).sum() for k in kernels) / 2, rtol=1e-6)
    for penalty, expected in ((functional.l1_penalty, np.sign), (functional.l2_penalty, lambda k: k)):
        gradient = jax.jit(jax.grad(penalty))(tree)
        assert_allclose(gradient["dense"]["kernel"], expected(kernels[0]), rtol=1e-6)
        assert_allclose(gradient["rest"]["unit"]["kernel"], expected(kernels[1]), rtol=1e-6)
        assert_array_equal(gradient["dense"]["bias"], 0)
        assert_array_equal(gradient["norm"]["scale"], 0)


def test_a_rate_of_l2_penalty_is_torchs_weight_decay():
    torch = pytest.importorskip("torch")
    (w,) = arrays(0, (4, 3))
    theirs = torch.nn.Parameter(torch.tensor(w))
    theirs.grad = torch.zeros_like(theirs)
    torch.optim.SGD([theirs], lr=0.5, weight_decay=0.01).step()
    gradient = jax.grad(lambda p: 0.01 * functional.l2_penalty(p))({"kernel": w})["kernel"]
    assert_allclose(w - 0.5 * gradient, theirs.detach().numpy(), rtol=1e-6)


def test_penalties_sum_in_float32_at_least():
    params = {"kernel": jnp.full((100, 100), 0.5, jnp.bfloat16), "bias": jnp.ones(3)}
    for penalty, expected in ((functional.l1_penalty, 5000), (functional.l2_penalty, 1250)):
        value, gradient = jax.value_and_grad(penalty)(params)
        assert value.dtype == jnp.float32
        assert value == expected
        assert gradient["kernel"].dtype == jnp.bfloat16
        assert penalty({"bias": jnp.ones(3)}) == 0
    with jax.enable_x64(True):
        assert functional.l2_penalty(parameters(np.float64)).dtype == jnp.float64
