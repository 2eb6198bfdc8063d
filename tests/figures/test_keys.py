"""No figure uses a random key in two ways: what is drawn, such as weights and an order, would not be independent."""

from collections import defaultdict
from functools import partial

import jax
import jax.extend
import jax.numpy as jnp
import pytest

from deepjax import zoo
from deepjax.figures import (
    Settings,
    dropconnect,
    dropout_width,
    filters,
    group_norm_batch_size,
    he_xavier,
    looking,
    perceptron_bound,
    pretraining,
    small_runs,
    weight_scale_disc,
)

THREEFRY = "threefry2x32"


def recording(uses):
    """Return an implementation of keys with JAX's numbers, which adds to the sets `uses` what each key is used for.

    `uses["made", key]`: how it was made of another one, by a split of a shape or by folding in a number.
    `uses["used", key]`: bits of a shape were drawn, or other keys made. A key is the tuple of its words.
    """
    wrap = partial(jax.random.wrap_key_data, impl=THREEFRY)
    words, bits, new = jax.random.key_data, jax.random.bits, jax.random.key

    def note(kind, keys, use):
        for key in keys.reshape(-1, 2).tolist():
            uses[kind, tuple(key)].add(use)

    def make(way, key, children, *use):
        jax.debug.callback(lambda key: note("used", key, "parent"), key)
        jax.debug.callback(lambda made: note("made", made, (way, *use)), children)
        return children

    def draw(key, width, shape):
        jax.debug.callback(lambda key: note("used", key, ("bits", shape)), key)
        return bits(wrap(key), shape, f"uint{width}")

    split, fold_in = jax.random.split, jax.random.fold_in
    return jax.extend.random.define_prng_impl(
        key_shape=(2,),
        seed=lambda seed: words(new(seed, impl=THREEFRY)),
        split=lambda key, shape: make("split", key, words(split(wrap(key), shape)), shape),
        random_bits=draw,
        fold_in=lambda key, number: make("fold in", key, words(fold_in(wrap(key), number))),
        name="recording",
    )


@pytest.fixture
def uses(monkeypatch):
    found = defaultdict(set)
    monkeypatch.setattr(jax.random, "key", partial(jax.random.key, impl=recording(found)))
    return found


def more_than_one(uses):
    """Return the keys that are made or used in more than one way. The same way again is a comparison's arms."""
    jax.effects_barrier()
    return {key: ways for key, ways in uses.items() if len(ways) > 1}


def one_update(network, variables, examples, test, key, *, optimizer, batch_size, steps, every):
    """Train as `small_runs.train`, on one batch."""
    few = jax.tree.map(lambda each: each[:batch_size], examples)
    return small_runs.train(
        network, variables, few, test, key, optimizer=optimizer, batch_size=batch_size, steps=1, every=1
    )


def tiny_dropconnect(patch):
    few = small_runs.Examples(jnp.ones((32, 16, 16, 1)), jnp.arange(32) % 10)
    augment = dropconnect.augmentations(28)[dropconnect.BLOCKS[2]]
    network = dropconnect.Augmented(zoo.create("mnist_cnn", width=1, drop="dropconnect"), augment)
    dropconnect._probabilities(network, few, few, jax.random.split(jax.random.key(0), 2), 1)


def tiny_dropout_width(patch):
    data = small_runs.load("digits", size=50)
    dropout_width._errors(2, 4, *data, jax.random.split(jax.random.key(0), 2), 1)


def tiny_filters(patch):
    patch(looking, "UPDATES", 1)
    patch(filters, "INITIALIZATIONS", 2)
    filters.numbers(Settings())


def tiny_group_norm(patch):
    patch(group_norm_batch_size, "WIDTH", 4)
    patch(group_norm_batch_size, "BATCH_SIZES", (4,))
    group_norm_batch_size.numbers(Settings())


def tiny_he_xavier(patch):
    patch(he_xavier, "DEPTHS", (3,))
    patch(he_xavier, "WIDTH", 4)
    he_xavier.numbers(Settings())


def tiny_perceptrons(patch):
    patch(perceptron_bound, "MARGINS", (0.1,))
    patch(perceptron_bound, "EPOCHS", 2)
    perceptron_bound.numbers(Settings())


def tiny_pretraining(patch):
    def drawn(model, key, x, **_):
        return model.init(key, x[:1], train=False)

    for name in ("autoencoder", "rbm"):  # the three starts have the same keys, each uses them in its own way
        patch(pretraining.init_from_data, name, drawn)
    for name, value in (("WIDTH", 4), ("UPDATES", 1), ("EVERY", 1)):
        patch(pretraining, name, value)
    pretraining.numbers(Settings())


def tiny_weight_scale_disc(patch):
    weight_scale_disc._errors("batch", jnp.ones(1), jax.random.split(jax.random.key(0), 2), 1)


TRAINED = (dropout_width, group_norm_batch_size, he_xavier, weight_scale_disc)
TINY = (
    tiny_dropconnect,
    tiny_dropout_width,
    tiny_filters,
    tiny_group_norm,
    tiny_he_xavier,
    tiny_perceptrons,
    tiny_pretraining,
    tiny_weight_scale_disc,
)


@pytest.mark.parametrize("tiny", TINY, ids=lambda tiny: tiny.__name__.removeprefix("tiny_"))
def test_a_figure_uses_each_key_in_one_way(tiny, uses, monkeypatch):
    for module in TRAINED:
        monkeypatch.setattr(module, "train", one_update)
    tiny(monkeypatch.setattr)
    assert not more_than_one(uses)
    assert len(uses) > 10


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (lambda key: jax.random.bits(key, (2,)), lambda key: jax.random.bits(key, (3,))),
        (lambda key: jax.random.bits(key, (2,)), lambda key: jax.random.split(key)),
        (lambda key: jax.random.split(key), lambda key: jax.random.split(key, 3)),
        (lambda key: jax.random.split(key), lambda key: jax.random.fold_in(key, 1)),
    ],
    ids=["draws", "draw and split", "splits", "split and fold in"],
)
def test_two_ways_are_noticed(first, again, uses):
    key = jax.random.key(0)
    wanted = first(jax.random.wrap_key_data(jax.random.key_data(key), impl=THREEFRY))
    words = jax.random.key_data if jnp.issubdtype(wanted.dtype, jax.dtypes.prng_key) else jnp.asarray
    assert (words(first(key)) == words(wanted)).all()
    assert not more_than_one(uses)
    jax.jit(jax.vmap(again))(key[None])
    assert more_than_one(uses)
