"""Compare functions of `deepjax.functional` with PyTorch in float64, on random shapes and options.

    python tests/faults/numerics.py --trials 300 --seed 1

Each trial draws a function, its shapes and options, and a dtype. Values and the gradients of all float arguments must
agree. Prints each disagreement, then `N of M agree`; the exit code is 1 if N is less than M.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch

from deepjax import functional

F = torch.nn.functional
ROUNDED = {"float64": 1e-10, "float32": 1e-4, "float16": 0.01, "bfloat16": 0.05}  # of the largest number
SPATIAL = {1: (F.conv1d, F.conv_transpose1d), 2: (F.conv2d, F.conv_transpose2d), 3: (F.conv3d, F.conv_transpose3d)}


def channels_first(x):
    return x.movedim(-1, 1).contiguous()


def channels_last(y):
    return y.movedim(1, -1)


def torch_kernel(kernel, transposed=False, groups=1):
    """[*window, in / groups, out] -> PyTorch's weight of a convolution, or of a transposed one."""
    if not transposed:
        return kernel.movedim((-1, -2), (0, 1)).contiguous()  # some of PyTorch's gradients need it
    parts = [part.movedim((-2, -1), (0, 1)) for part in kernel.chunk(groups, -1)]
    return torch.cat(parts, 0).contiguous()


# Trials: each function draws and returns (name, ours, theirs, arguments), where the arguments are float64 arrays.


def convolution(rng, transposed=False):
    axes, groups = int(rng.integers(1, 4)), int(rng.choice([1, 1, 2, 3]))
    part, out = int(rng.integers(1, 4)), groups * int(rng.integers(1, 4))
    if rng.random() < 0.25:
        groups, part = 4, 1  # depthwise
        out = groups * int(rng.integers(1, 3))
    size, window, stride, dilation = (
        tuple(map(int, rng.integers(low, high, axes))) for low, high in ((5, 9), (1, 4), (1, 4), (1, 3))
    )
    padding = tuple(int(rng.integers(0, (w - 1) * d // 2 + 1)) for w, d in zip(window, dilation, strict=True))
    options = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    if transposed:
        options["output_padding"] = tuple(
            int(rng.integers(0, max(s, d))) for s, d in zip(stride, dilation, strict=True)
        )
    batch = int(rng.choice([1, 3, 32]))
    arguments = [
        rng.standard_normal((batch, *size, part * groups)),
        rng.standard_normal((*window, part, out)),
        rng.standard_normal(out),
    ]
    function = functional.conv_transpose if transposed else functional.conv

    def theirs(x, kernel, bias):
        weight = torch_kernel(kernel, transposed, groups)
        return channels_last(SPATIAL[axes][transposed](channels_first(x), weight, bias, **options))

    name = f"{'conv_transpose' if transposed else 'conv'} {size} {window} {part}x{groups}->{out} {options}"
    return name, lambda *a: function(*a, **options), theirs, arguments


def pooling(rng):
    axes = int(rng.integers(1, 4))
    kind = str(rng.choice(["max", "avg", "adaptive"]))
    size = tuple(map(int, rng.integers(4, 9, axes)))
    x = rng.standard_normal((2, *size, 3))
    if kind == "adaptive":
        target = tuple(map(int, rng.integers(1, 8, axes)))
        pool = getattr(F, f"adaptive_avg_pool{axes}d")
        return (
            f"adaptive_avg_pool {size} {target}",
            lambda x: functional.adaptive_avg_pool(x, target),
            lambda x: channels_last(pool(channels_first(x), target)),
            [x],
        )
    window, stride = (tuple(map(int, rng.integers(1, 4, axes))) for _ in range(2))
    options = {"stride": stride, "padding": tuple(int(rng.integers(0, w // 2 + 1)) for w in window)}
    ceil = bool(rng.random() < 0.5)
    more, theirs_more = ({}, {}) if kind == "max" else ({"count_padding": bool(rng.random() < 0.5)},) * 2
    theirs_more = {"count_include_pad": more["count_padding"]} if more else {}
    ours, pool = getattr(functional, f"{kind}_pool"), getattr(F, f"{kind}_pool{axes}d")
    return (
        f"{kind}_pool {size} {window} {options} ceil={ceil} {more}",
        lambda x: ours(x, window, ceil=ceil, **options, **more),
        lambda x: channels_last(pool(channels_first(x), window, ceil_mode=ceil, **options, **theirs_more)),
        [x],
    )


def normalization(rng):
    groups, pixels = int(rng.choice([1, 2, 4])), tuple(map(int, rng.integers(2, 6, int(rng.integers(1, 4)))))
    x, scale, bias = rng.standard_normal((4, *pixels, 8)) + rng.normal(), rng.standard_normal(8), rng.standard_normal(8)
    kind = str(rng.choice(["layer", "group", "instance", "batch", "masked batch"]))
    mask = np.array([True, False, True, True]) if kind == "masked batch" else None

    def batch(x, scale, bias):
        running = functional.Moments(jnp.zeros(8), jnp.ones(8))
        y = functional.batch_norm(x, scale, bias, running, train=True, mask=mask)[0]
        return y if mask is None else y[mask]

    def batch_theirs(x, scale, bias):
        x = x if mask is None else x[torch.from_numpy(mask)]
        return channels_last(F.batch_norm(channels_first(x), None, None, scale, bias, training=True))

    pairs = {
        "layer": (functional.layer_norm, lambda x, s, b: F.layer_norm(x, (8,), s, b)),
        "group": (
            lambda *a: functional.group_norm(*a, groups=groups),
            lambda x, s, b: channels_last(F.group_norm(channels_first(x), groups, s, b)),
        ),
        "instance": (
            functional.instance_norm,
            lambda x, s, b: channels_last(F.instance_norm(channels_first(x), weight=s, bias=b)),
        ),
        "batch": (batch, batch_theirs),
        "masked batch": (batch, batch_theirs),
    }
    return f"{kind} norm {x.shape} groups={groups}", *pairs[kind], [x, scale, bias]


def loss(rng):
    rows, classes = int(rng.integers(1, 9)), int(rng.integers(2, 7))
    logits, others = (3 * rng.standard_normal((rows, classes)) for _ in range(2))
    labels, mask = rng.integers(classes, size=rows), rng.random(rows) < 0.7
    smoothing, beta, t = float(rng.choice([0.0, 0.1, 0.7])), float(rng.uniform(0.2, 3)), float(rng.uniform(0.5, 5))
    where, kept = torch.from_numpy(labels), torch.from_numpy(mask)
    f = functional

    def distillation(a, b):
        logs = [F.log_softmax(x / t, -1) for x in (a, b)]
        return t**2 * F.kl_div(*logs, reduction="none", log_target=True).sum(-1)

    pairs = {
        "cross_entropy": (
            lambda a, b: f.cross_entropy(a, labels, smoothing=smoothing, mask=mask),
            lambda a, b: F.cross_entropy(a, where, reduction="none", label_smoothing=smoothing) * kept,
        ),
        "cross_entropy with targets": (
            lambda a, b: f.cross_entropy(a, jax.nn.softmax(b), mask=mask),
            lambda a, b: F.cross_entropy(a, F.softmax(b, -1), reduction="none") * kept,
        ),
        "kl_distillation": (lambda a, b: f.kl_distillation(a, b, temperature=t), distillation),
        "binary_cross_entropy": (
            lambda a, b: f.binary_cross_entropy(a, jax.nn.sigmoid(b), mask=mask),
            lambda a, b: F.binary_cross_entropy_with_logits(a, b.sigmoid(), reduction="none") * kept[:, None],
        ),
        "huber": (
            lambda a, b: f.huber(a, b, delta=beta),
            lambda a, b: F.huber_loss(a, b, delta=beta, reduction="none"),
        ),
        "smooth_l1": (
            lambda a, b: f.smooth_l1(a, b, beta=beta),
            lambda a, b: F.smooth_l1_loss(a, b, beta=beta, reduction="none"),
        ),
        "mse": (lambda a, b: f.mse(a, b, mask=mask), lambda a, b: (a - b) ** 2 * kept[:, None]),
    }
    name = str(rng.choice(list(pairs)))
    return f"{name} {rows}x{classes} smoothing={smoothing} beta={beta:.2f} t={t:.2f}", *pairs[name], [logits, others]


def activation(rng):
    features = int(rng.integers(1, 6))
    x = 2 * rng.standard_normal((*rng.integers(1, 5, int(rng.integers(1, 4))), features))
    slope = rng.uniform(-0.5, 1, int(rng.choice([1, features])))
    pairs = {
        "prelu": (
            functional.prelu,
            lambda x, s: F.prelu(x.reshape(-1, features), s).reshape(x.shape),
        ),
        "elu": (lambda x, s: functional.elu(x, 0.7), lambda x, s: F.elu(x, 0.7)),
        "selu": (lambda x, s: functional.selu(x), lambda x, s: F.selu(x)),
        "softplus": (lambda x, s: functional.softplus(x), lambda x, s: F.softplus(x)),
        "leaky_relu": (lambda x, s: functional.leaky_relu(x, 0.2), lambda x, s: F.leaky_relu(x, 0.2)),
    }
    name = str(rng.choice(list(pairs)))
    return f"{name} {x.shape} slopes={slope.shape}", *pairs[name], [x, slope]


KINDS = (convolution, lambda rng: convolution(rng, transposed=True), pooling, normalization, loss, activation)


def disagreement(rng, dtype):
    """Run one trial. Return None, or its name and why it disagrees."""
    name, ours, theirs, arguments = KINDS[rng.integers(len(KINDS))](rng)
    if dtype in ("float16", "bfloat16") and name.startswith("max_pool"):
        dtype = "float32"  # equal numbers after rounding: the gradient may go to either
    rounded = [jnp.asarray(a, dtype) for a in arguments]
    exact = [torch.from_numpy(np.array(a, np.float64)).requires_grad_() for a in rounded]
    wanted = theirs(*exact)
    shape = tuple(wanted.shape)
    dy = jnp.asarray(rng.standard_normal(shape), dtype)
    wanted.backward(torch.from_numpy(np.array(dy, np.float64)))

    @jax.jit
    def run(arguments, dy):
        y, pull = jax.vjp(ours, *arguments)
        return y, pull(dy.astype(y.dtype))

    try:
        y, gradients = run(rounded, dy)
    except Exception as error:
        return f"{dtype} {name}: {type(error).__name__} {str(error)[:200]}"
    pairs = [(y, wanted.detach())]
    pairs += [(g, torch.zeros_like(a) if a.grad is None else a.grad) for g, a in zip(gradients, exact, strict=True)]
    for found, right in pairs:
        found, right = np.asarray(found, np.float64), right.numpy()
        scale = max(np.abs(right).max(initial=0), 1e-2)
        if found.shape != right.shape or not np.abs(found - right).max(initial=0) <= ROUNDED[dtype] * scale:
            return f"{dtype} {name}: {found.shape} {right.shape}, error {np.abs(found - right).max() / scale:.2g}"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    rng, agree = np.random.default_rng(options.seed), 0
    for _ in range(options.trials):
        problem = disagreement(rng, str(rng.choice(list(ROUNDED))))
        agree += problem is None
        if problem:
            print(problem)
    print(f"{agree} of {options.trials} agree (seed {options.seed})")
    return int(agree < options.trials)


if __name__ == "__main__":
    sys.exit(main())
