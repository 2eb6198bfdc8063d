"""Mixup and CutMix: shares, partners, boxes, padding; the step with them."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepjax import data, training
from deepjax.config import Augment
from deepjax.data import mixing
from deepjax.parallel import make_mesh
from deepjax.tasks import Classification
from helpers import random_arrays

BATCH = 6
(IMAGES,) = random_arrays(5, (BATCH, 8, 10, 2))
LABELS = np.arange(BATCH)
MASK = np.array([True, False, True, True, False, True])
REAL = np.flatnonzero(MASK)


@partial(jax.jit, static_argnums=0)
def mixed(augment, keys, images, mask):
    return jax.vmap(lambda key: data.mix(key, images, LABELS, mask, augment, BATCH))(keys)


def many(augment, mask=MASK, images=IMAGES):
    """Mixed images and targets for 2,000 keys."""
    return jax.tree.map(np.asarray, mixed(augment, jax.random.split(jax.random.key(0), 2000), images, mask))


# Few settings for all tests, because each is compiled.
MIXUP, CUTMIX, BOTH = Augment(mixup=0.4), Augment(cutmix=1.0), Augment(mixup=1.0, cutmix=1.0)


# --- both


@pytest.mark.parametrize("augment", [MIXUP, CUTMIX, BOTH])
def test_padding_is_neither_mixed_nor_mixed_in(augment):
    images, targets = many(augment)
    np.testing.assert_array_equal(images[:, ~MASK], np.broadcast_to(IMAGES[~MASK], (2000, 2, 8, 10, 2)))
    np.testing.assert_array_equal(targets[:, ~MASK], np.broadcast_to(np.eye(BATCH)[[1, 4]], (2000, 2, BATCH)))
    assert (targets[:, REAL][:, :, [1, 4]] == 0).all()
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)
    # Other padding changes nothing.
    other = np.where(MASK[:, None, None, None], IMAGES, np.float32(100))
    np.testing.assert_array_equal(many(augment, images=other)[0][:, REAL], images[:, REAL])


@pytest.mark.parametrize("augment", [MIXUP, CUTMIX])
def test_partners_form_a_random_ring(augment):
    """Each real row is mixed with another, each with one; all are equally likely."""
    shares = many(augment)[1][:, REAL][:, :, REAL].astype(float)
    own = np.einsum("kii->ki", shares)
    np.testing.assert_allclose(own, np.broadcast_to(own[:, :1], own.shape), rtol=1e-6)  # one share for the batch
    clear = (own[:, 0] < 0.999) & (own[:, 0] > 0.001)
    assert clear.mean() > 0.8
    partners = (shares * (1 - np.eye(4))).argmax(-1)[clear]
    assert (np.sort(partners, 1) == np.arange(4)).all()
    assert (partners != np.arange(4)).all()
    counts, expected = np.bincount(partners[:, 0], minlength=4)[1:], clear.sum() / 3
    assert abs(((counts - expected) ** 2 / expected).sum() - 2) < 4 * math.sqrt(4)


@pytest.mark.parametrize("augment", [MIXUP, CUTMIX])
def test_few_rows(augment):
    for mask in (np.zeros(BATCH, bool), np.arange(BATCH) == 2):  # none, and one that has no partner
        x, targets = many(augment, mask)
        np.testing.assert_allclose(x, np.broadcast_to(IMAGES, x.shape), rtol=1e-5)
        np.testing.assert_allclose(targets, np.broadcast_to(np.eye(BATCH), targets.shape), atol=1e-6)


def draw_shares_fast(monkeypatch):
    """Beta draws compile for seconds. Here uniform ones, of the same keys."""
    monkeypatch.setattr(jax.random, "beta", lambda key, *_: jax.random.uniform(key))


def test_without_a_mask_all_rows_are_real(monkeypatch):
    draw_shares_fast(monkeypatch)
    augment = Augment(cutmix=3.0)  # not CUTMIX, which is compiled
    without, masked = many(augment, None), many(augment, np.ones(BATCH, bool))
    jax.tree.map(np.testing.assert_array_equal, without, masked)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_dtypes_and_features(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        key, targets = jax.random.key(0), jnp.asarray(np.eye(4), dtype)
        for way, shape in ((mixing.mixup, (4, 3)), (mixing.mixup, (4, 5, 3)), (mixing.cutmix, (4, 8, 9, 3))):
            outputs = jax.eval_shape(
                lambda x, way=way: way(key, x, targets, None, 1.0), jax.ShapeDtypeStruct(shape, dtype)
            )
            assert [(y.shape, y.dtype) for y in outputs] == [(shape, dtype), ((4, 4), dtype)]


def test_each_batch_gets_one_of_the_two():
    """Of constant images, mixup makes constant ones, cutmix does not."""
    flat = np.broadcast_to(np.arange(BATCH, dtype=np.float32)[:, None, None, None], IMAGES.shape)
    images, targets = many(BOTH, images=flat)
    patchy = (np.ptp(images, axis=(2, 3, 4)) > 0).any(1)
    blended = ~patchy & (targets[:, 0, 0] > 0) & (targets[:, 0, 0] < 1)
    assert (patchy | blended).mean() > 0.95  # the others are boxes without, or with all pixels
    assert abs(blended.mean() - 0.5) < 4 * 0.5 / math.sqrt(2000)


def test_nothing_asked_gives_one_hot_targets():
    images, targets = data.mix(jax.random.key(0), IMAGES, LABELS, MASK, Augment(), BATCH)
    assert images is IMAGES
    np.testing.assert_array_equal(targets, np.eye(BATCH))


# --- mixup


def test_mixup_is_a_blend_with_the_targets_share():
    images, targets = many(MIXUP)
    for x, shares in zip(images[:50], targets):
        expected = np.einsum("ij,jhwc->ihwc", shares.astype(float), IMAGES.astype(float))
        np.testing.assert_allclose(x, expected, atol=1e-5)


def test_shares_are_beta_and_finite():
    keys, targets = jax.random.split(jax.random.key(0), 2000), jnp.asarray(np.eye(BATCH), jnp.float32)
    mixup = jax.jit(lambda alpha: jax.vmap(lambda key: mixing.mixup(key, targets, targets, MASK, alpha))(keys))
    for alpha in (0.4, 3.0):
        share = np.asarray(mixup(alpha)[1], float)[:, 0, 0]
        variance = 1 / (4 * (2 * alpha + 1))
        assert abs(share.mean() - 0.5) < 4 * math.sqrt(variance / 2000)
        fourth = np.mean((share - share.mean()) ** 4)
        assert abs(share.var() - variance) < 4 * math.sqrt((fourth - variance**2) / 2000)
    assert all(np.isfinite(mixed).all() for mixed in mixup(1e-3))


# --- cutmix


def changed_pixels(images, row):
    """bool [keys, H, W]: which pixels of a row are no longer its own."""
    return (images[:, row] != IMAGES[row]).any(-1)


def test_cutmix_pastes_a_box_and_shares_by_its_true_area():
    images, targets = (array[:300] for array in many(CUTMIX))
    inside = changed_pixels(images, 0)
    np.testing.assert_allclose(1 - inside.mean((1, 2)), targets[:, 0, 0], atol=1e-6)
    for k, box in enumerate(inside):
        rows, columns = box.any(1), box.any(0)
        np.testing.assert_array_equal(box, np.outer(rows, columns))
        assert (np.diff(np.flatnonzero(rows)) == 1).all()  # in one piece
        assert (np.diff(np.flatnonzero(columns)) == 1).all()
        if box.any():
            (partner,) = set(np.flatnonzero(targets[k, 0])) - {0} or {0}
            np.testing.assert_array_equal(images[k, 0][box], IMAGES[partner][box])
        np.testing.assert_array_equal(changed_pixels(images, 3)[k], box)  # the same box for all rows


def test_the_box_is_drawn_around_a_uniform_pixel(monkeypatch):
    """A share of 3/4: half of each side, 4 of 8 rows around row 0 to 7, 5 of 10 columns."""
    monkeypatch.setattr(jax.random, "beta", lambda *_: jnp.float32(0.75))
    images, _ = many(Augment(cutmix=2.0))  # not CUTMIX, which is compiled
    inside = changed_pixels(images, 0)
    rows = np.bincount(inside.any(2).sum(1), minlength=5)[2:]  # around row 0: 2, around 1 and 7: 3
    columns = np.bincount(inside.any(1).sum(1), minlength=6)[3:]  # around 0 and 9: 3, around 1 and 8: 4
    for counts, shares in ((rows, (1 / 8, 2 / 8, 5 / 8)), (columns, (2 / 10, 2 / 10, 6 / 10))):
        for count, share in zip(counts, shares):
            assert abs(count / 2000 - share) < 4 * math.sqrt(share * (1 - share) / 2000)
    middle = inside.any(2).mean(0)[3]  # in the box if it is around row 2 to 5
    assert abs(middle - 4 / 8) < 4 * 0.5 / math.sqrt(2000)


# --- the step


def linear(params, image):
    return image.reshape(len(image), -1) @ params


class Linear:
    """As a Linen module is called: one kernel."""

    def __call__(self, x, *, train):
        raise NotImplementedError

    def apply(self, variables, x, **call):
        logits = linear(variables["params"]["kernel"], x)
        return (logits, {}) if call.get("mutable") else logits


def soft_loss(kernel, image, targets, smoothing):
    """float64: (losses, right) of each row."""
    logits = np.asarray(image, float).reshape(len(image), -1) @ np.asarray(kernel, float)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    smooth = (1 - smoothing) * np.asarray(targets, float) + smoothing / targets.shape[-1]
    return -(smooth * log_p).sum(-1), logits.argmax(-1) == np.asarray(targets).argmax(-1)


@pytest.mark.parametrize("strategy", ["jit", "pmap"])
def test_the_step_uses_soft_targets(strategy, monkeypatch):
    """Loss, error and gradient of mixed rows, by hand; under pmap each device mixes its own rows by its own key."""
    draw_shares_fast(monkeypatch)
    augment, mesh = Augment(mixup=1.0), make_mesh(2, strategy)
    kernel = 0.1 * np.random.default_rng(3).standard_normal((160, BATCH)).astype(np.float32)
    state = training.TrainState(np.zeros((), np.int32), {"kernel": kernel}, {}, optax.sgd(1.0).init({}), {})
    batch = {"image": IMAGES, "label": LABELS, "mask": MASK}
    mix = lambda key, image, label, mask: data.mix(key, image, label, mask, augment, BATCH)  # noqa: E731

    task = Classification(tuple(map(str, range(BATCH))), mix=mix, smoothing=0.1)

    def step(state, whole, rows, key, axis_name=None):
        return training.train_step(
            state,
            rows,
            key,
            model=Linear(),
            optimizer=optax.sgd(1.0),
            schedule=lambda count: 1.0,
            task=task,
            axis_name=axis_name,
        )

    updated, metrics = mesh.step(step)(mesh.replicate(state), (), mesh.to_devices(batch), jax.random.key(0))
    key = jax.random.fold_in(jax.random.key(0), 0)
    if strategy == "jit":
        parts = [(slice(None), key)]
    else:
        parts = [(slice(3 * d, 3 * d + 3), jax.random.fold_in(key, d)) for d in range(2)]
    losses, right, gradient = [], [], np.zeros((160, BATCH))
    for part, key in parts:
        image, targets = jax.jit(mix)(jax.random.fold_in(key, 2), IMAGES[part], LABELS[part], MASK[part])
        loss, correct = soft_loss(kernel, image, targets, 0.1)
        losses.append(loss[MASK[part]])
        right.append(correct[MASK[part]])
        flat, real = np.asarray(image, float).reshape(len(image), -1), MASK[part][:, None]
        p = np.exp(flat @ np.asarray(kernel, float))
        p /= p.sum(-1, keepdims=True)
        gradient += flat.T @ (real * (p - (0.9 * np.asarray(targets) + 0.1 / BATCH))) / 4
    np.testing.assert_allclose(metrics["loss"], np.concatenate(losses).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["error"], 1 - np.concatenate(right).mean(), rtol=1e-6)
    np.testing.assert_allclose(kernel - np.asarray(updated.params["kernel"]), gradient, atol=1e-5)
