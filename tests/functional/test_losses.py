"""Losses against PyTorch in values and gradients; extremes, masks and labels. One program holds all of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from deepjax import functional
from deepjax.errors import InputError
from helpers import random_arrays


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
    return logits.max(-1).values - logits.gather(-1, labels[..., None])[..., 0]


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


def values_and_gradients(cases):
    """{name: (losses, gradient)} as NumPy arrays of {name: (loss, logits, targets)}, in one program.

    The gradient is that of the sum of the losses, each with another weight, with respect to the logits.
    """

    def total(logits, targets, loss):
        losses = loss(logits, targets)
        return (losses * jnp.arange(1, losses.size + 1, dtype=losses.dtype).reshape(losses.shape)).sum(), losses

    @jax.jit
    def run(inputs):
        return {n: jax.grad(partial(total, loss=cases[n][0]), has_aux=True)(*args) for n, args in inputs.items()}

    results = run({name: arguments for name, (_, *arguments) in cases.items()})
    return {name: (np.asarray(losses), np.asarray(gradient)) for name, (gradient, losses) in results.items()}


def value_and_gradient(loss, logits, targets):
    return values_and_gradients({"": (loss, logits, targets)})[""]


def torch_value_and_gradient(torch, loss, logits, targets):
    z = torch.tensor(np.asarray(logits, np.float64), requires_grad=True)
    integers = np.issubdtype(targets.dtype, np.integer)
    losses = loss(torch, z, torch.tensor(targets if integers else np.asarray(targets, np.float64)))
    (losses * torch.arange(1, losses.numel() + 1).reshape(losses.shape)).sum().backward()
    return losses.detach().numpy(), z.grad.numpy()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12), ("bfloat16", 1e-5)])
def test_losses_and_gradients_are_torchs(dtype, tolerance):
    torch = pytest.importorskip("torch")
    logits = (2 * random_arrays(0, (3, 4, 7))[0]).astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        names = PATHS if dtype == "bfloat16" else LOSSES
        cases = {name: (LOSSES[name][0], logits, second(LOSSES[name][2], logits.shape)) for name in names}
        results = values_and_gradients(cases)
    for name, (losses, gradient) in results.items():
        assert losses.dtype == (np.float64 if dtype == "float64" else np.float32)  # bfloat16 is widened first
        assert gradient.dtype == logits.dtype
        expected, expected_gradient = torch_value_and_gradient(torch, LOSSES[name][1], *cases[name][1:])
        assert_allclose(losses, expected, rtol=tolerance, atol=tolerance, err_msg=name)
        near = 2**-8 if dtype == "bfloat16" else tolerance
        assert_allclose(np.float64(gradient), expected_gradient, rtol=near, atol=10 * near, err_msg=name)


def test_losses_are_finite_and_right_for_extreme_logits():
    torch = pytest.importorskip("torch")
    row = [1e4, -1e4, 0.0, 1.0]
    logits = np.array([row, row[::-1], [1e4, 1e4, -1e4, -1e4], [-1e4, -1e4, -1e4, 1e4]], np.float32)
    logits, cases = np.tile(logits, (3, 1)), {}
    for name, (ours, _, kind) in LOSSES.items():
        targets = second(kind, logits.shape)
        cases[name] = ours, logits, logits[:, ::-1] + targets if kind == "logits" else targets
    for name, (losses, gradient) in values_and_gradients(cases).items():
        assert np.isfinite(losses).all()
        assert np.isfinite(gradient).all()
        expected, expected_gradient = torch_value_and_gradient(torch, LOSSES[name][1], *cases[name][1:])
        assert_allclose(losses, expected, rtol=1e-5, atol=1e-3, err_msg=name)
        assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-3, err_msg=name)


def test_any_number_of_leading_axes_and_vmap():
    (x,) = random_arrays(1, (2, 3, 5))

    @jax.jit
    def run(x, seconds):
        forms = {}
        for name, y in seconds.items():
            f = LOSSES[name][0]
            forms[name] = f(x, y), jax.vmap(jax.vmap(f))(x, y), f(x[1, 2], y[1, 2])
        return forms

    forms = run(x, {name: second(LOSSES[name][2], x.shape) for name in PATHS})
    for name, (losses, mapped, one) in jax.tree.map(np.asarray, forms).items():
        of_classes = LOSSES[name][2] in ("labels", "soft") or name.startswith("kl")
        assert losses.shape == ((2, 3) if of_classes else (2, 3, 5))
        assert_allclose(mapped, losses, rtol=1e-6, atol=1e-7, err_msg=name)
        assert_allclose(one, losses[1, 2], rtol=1e-6, atol=1e-7, err_msg=name)


def test_masked_entries_do_not_count_whatever_they_hold():
    mask = np.array([True, True, False, True, False, True])
    (logits,) = random_arrays(2, (6, 2, 5))
    spoiled = np.where(mask[:, None, None], logits, np.float32(np.nan))
    cases = {}
    for name in PATHS:
        ours, _, kind = LOSSES[name]
        targets = second(kind, logits.shape)
        cases[name] = ours, logits, targets.copy()
        targets[~mask] = -1 if kind == "labels" else np.nan
        cases[name, "masked"] = partial(ours, mask=mask), spoiled, targets
    results = values_and_gradients({str(case): arguments for case, arguments in cases.items()})
    for name in PATHS:
        (losses, gradient), (expected, expected_gradient) = results[str((name, "masked"))], results[name]
        assert_allclose(losses[mask], expected[mask], rtol=1e-6, err_msg=name)
        assert_allclose(gradient[mask], expected_gradient[mask], rtol=1e-6, atol=1e-7, err_msg=name)
        assert_array_equal(losses[~mask], 0)
        assert_array_equal(gradient[~mask], 0)


@pytest.mark.parametrize("loss", [functional.mse, partial(functional.kl_distillation, temperature=1.0)])
def test_a_mask_of_the_results_own_shape(loss):
    logits, targets = random_arrays(3, (4, 2, 5), (4, 2, 5))
    mask = np.random.default_rng(4).random(jax.eval_shape(loss, logits, targets).shape) < 0.5
    losses, masked = jax.jit(lambda x, y: (loss(x, y), loss(x, y, mask=mask)))(logits, targets)
    assert_allclose(masked, np.where(mask, losses, 0), rtol=1e-6)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("mask", [np.ones(5, bool), np.ones(6), np.ones((6, 1), bool), np.ones((6, 2, 5, 1), bool)])
def test_mask_errors(name, mask):
    ours, _, kind = LOSSES[name]
    (logits,) = random_arrays(2, (6, 2, 5))
    with pytest.raises(InputError, match=f"{ours.func.__name__ if isinstance(ours, partial) else ours.__name__}: mask"):
        ours(logits, second(kind, logits.shape), mask=mask)


# Cross entropy


def test_targets_of_any_dtype_are_the_labels():
    (logits,) = random_arrays(0, (4, 3))
    labels, dtypes = np.array([2, 0, 1, 1]), (jnp.float32, jnp.bfloat16, jnp.int32, jnp.bool)
    one_hot = [np.eye(3)[labels].astype(dtype) for dtype in dtypes]

    @jax.jit
    def run(logits, one_hot):
        results = []
        for smoothing in (0.0, 0.2, 1.0):
            loss = partial(functional.cross_entropy, logits, smoothing=smoothing)
            smooth = functional.smooth_labels(labels, smoothing, 3)
            results.append((loss(labels), [*map(loss, one_hot), functional.cross_entropy(logits, smooth)]))
        return results

    for expected, losses in run(logits, one_hot):
        for ours in losses:
            assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize("loss", [functional.cross_entropy, functional.perceptron])
def test_labels_of_any_integer_dtype(loss):
    (logits,) = random_arrays(0, (3, 1000))
    labels = [np.array([0, 100, 127], dtype) for dtype in ("int32", "int8", "uint8", "uint32")]
    expected, *others = jax.jit(lambda labels: [loss(logits, array) for array in labels])(labels)
    for losses in others:
        assert_array_equal(losses, expected)


@pytest.mark.parametrize(
    "loss", [functional.cross_entropy, partial(functional.cross_entropy, smoothing=0.1), functional.perceptron]
)
def test_labels_outside_of_the_classes_give_nan(loss):
    (logits,) = random_arrays(0, (5, 3))
    labels = np.array([0, -1, 3, 2, -100])
    ignoring = partial(loss, mask=labels >= 0)  # PyTorch's ignore_index
    results = values_and_gradients({"": (loss, logits, labels), "masked": (ignoring, logits, labels)})
    losses, gradient = results[""]
    assert np.isnan(losses).tolist() == [False, True, True, False, True]
    assert np.isfinite(gradient).all()  # the value stops training
    assert np.isnan(results["masked"][0]).tolist() == [False, False, True, False, False]


def test_a_class_with_logit_minus_infinity_is_left_out():
    (logits,) = random_arrays(0, (4, 5))
    barred = np.concatenate([logits, np.full((4, 2), -np.inf, np.float32)], -1)
    soft = distributions(0, (4, 5)).astype(np.float32)
    for targets in (np.array([0, 3, 4, 1]), soft):
        wide = np.pad(targets, [(0, 0), (0, 2)]) if targets.ndim == 2 else targets
        loss = functional.cross_entropy
        results = values_and_gradients({"all": (loss, logits, targets), "barred": (loss, barred, wide)})
        (expected, expected_gradient), (losses, gradient) = results["all"], results["barred"]
        assert_allclose(losses, expected, rtol=1e-6)
        assert_allclose(gradient[:, :5], expected_gradient, rtol=1e-5, atol=1e-6)


def test_smooth_labels():
    targets = jax.jit(lambda labels: functional.smooth_labels(labels, 0.2, 4))(np.array([[1], [0]]))
    assert_allclose(targets, [[[0.05, 0.85, 0.05, 0.05]], [[0.85, 0.05, 0.05, 0.05]]], rtol=1e-6)


@pytest.mark.parametrize(
    ("labels", "smoothing", "message"),
    [
        (np.zeros(3, np.int32), 0.0, "do not match"),
        (np.zeros((2, 1), np.int32), 0.0, "do not match"),
        (np.zeros((2, 4), np.float32), 0.0, r"or targets of shape \(2, 5\)"),
        (np.zeros(2, np.float32), 0.0, "must be integers"),
        (np.zeros(2, np.float32), 0.1, "must be integers"),
        (np.zeros(2, bool), 0.1, "must be integers"),
        (np.zeros(2, np.int32), -0.1, "smoothing .* of labels must be in"),
        (np.zeros(2, np.int32), 1.1, "smoothing .* of labels must be in"),
        (np.zeros((2, 5), np.float32), 1.1, "smoothing .* of labels must be in"),
        (np.zeros(2, np.int32), float("nan"), "smoothing .* of labels must be in"),
    ],
)
def test_cross_entropy_errors(labels, smoothing, message):
    with pytest.raises(InputError, match=message):
        functional.cross_entropy(np.ones((2, 5), np.float32), labels, smoothing=smoothing)


def test_a_scalar_has_no_classes():
    for loss in (functional.cross_entropy, functional.perceptron):
        with pytest.raises(InputError, match="do not match"):
            loss(np.float32(1), np.array(0))
    with pytest.raises(InputError, match="classes axis"):
        functional.kl_distillation(np.float32(1), np.float32(1), temperature=1.0)


# The others


def test_perceptron_of_two_classes_is_the_binary_one():
    (logits,) = random_arrays(0, (50, 2))
    labels = np.random.default_rng(1).integers(0, 2, 50)
    expected = np.maximum(0, -(logits[:, 1] - logits[:, 0]) * (2 * labels - 1))
    assert_allclose(jax.jit(functional.perceptron)(logits, labels), expected, rtol=1e-6, atol=1e-7)


def test_perceptrons_gradient_moves_only_the_winner_and_the_label():
    gradient = jax.grad(lambda z: functional.perceptron(z, np.array([0, 1])).sum())
    gradient = jax.jit(gradient)(np.array([[1, 3, 2], [1, 3, 2]], np.float32))
    assert gradient.tolist() == [[-1, 1, 0], [0, 0, 0]]


def test_distillation_flows_into_the_teacher_as_in_torch():
    torch = pytest.importorskip("torch")
    student, teacher = random_arrays(0, (4, 6), (4, 6))
    loss = partial(functional.kl_distillation, student, temperature=3.0)
    ours, of_shifted = jax.jit(lambda t: (jax.grad(lambda t: loss(t).sum())(t), loss(student + 2)))(teacher)
    wide = torch.tensor(teacher.astype(np.float64), requires_grad=True)
    kl_reference(torch, torch.tensor(student), wide, 3.0).sum().backward()
    assert_allclose(ours, wide.grad, rtol=1e-4, atol=1e-6)
    assert_allclose(of_shifted, 0, atol=1e-5)


def test_distillation_at_high_temperature_compares_centred_logits():
    """Hinton et al. 2015, eq. 4: the gradient tends to the difference of the zero-mean logits over the classes."""
    student, teacher = (a - a.mean(-1, keepdims=True) for a in random_arrays(0, (4, 6), (4, 6)))
    loss = partial(functional.kl_distillation, teacher_logits=teacher, temperature=200.0)
    gradient = jax.jit(jax.grad(lambda s: loss(s).sum()))(student)
    assert_allclose(gradient, (student - teacher) / 6, rtol=0.05, atol=5e-3)


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_focal_of_certain_and_right_has_a_finite_gradient(gamma):
    """There (1 - p_t)^gamma is 0^gamma, and its own derivative infinite."""
    logits = np.array([1e4, -1e4, 200.0, -200.0], np.float32)
    losses, gradient = value_and_gradient(partial(functional.focal, gamma=gamma), logits, np.array([1, 0, 1, 0]))
    assert_array_equal(losses, 0)
    assert_array_equal(gradient, 0)


TWO = [partial(functional.kl_distillation, temperature=1.0), functional.binary_cross_entropy, functional.focal]
TWO += [functional.mse, functional.mae, functional.huber, functional.smooth_l1]


@pytest.mark.parametrize("loss", TWO)
@pytest.mark.parametrize("shapes", [((3, 2), (2,)), ((3, 1), (3,)), ((3,), ())])
def test_shapes_that_would_broadcast_are_refused(loss, shapes):
    with pytest.raises(InputError, match="must have the same shape"):
        loss(*(np.ones(shape, np.float32) for shape in shapes))


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
        loss(*np.ones((2, 2, 3), np.float32), **options)
