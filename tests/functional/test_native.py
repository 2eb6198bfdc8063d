"""The door of the optional package deepjax_native. Its own tests are in native/tests."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from deepjax.errors import InputError
from deepjax.functional import conv, max_pool, native
from deepjax.functional.convolution import backend
from helpers import random_arrays


@pytest.fixture
def package(monkeypatch):
    """A package that supports float32 without groups, and notes which maps it computes."""
    used = []

    def noted(name):
        def compute(a, b, form):
            used.append(name)
            return getattr(backend, name)(a, b, form)

        return compute

    names = ("forward", "input_gradient", "kernel_gradient")
    fake = types.SimpleNamespace(**{name: noted(name) for name in names}, used=used)
    fake.supports = lambda form, dtype: form.groups == 1 and dtype == jnp.float32

    def max_pool_gradient(x, dy, window, stride, low):
        used.append("max_pool_gradient")
        assert (window, stride, low) == ((3, 2), (2, 2), (1, 0))
        return jnp.full(x.shape, 7.0) * dy.mean()

    fake.max_pool_gradient = max_pool_gradient
    fake.supports_max_pool = lambda axes, dtype: axes == 2 and dtype == jnp.float32
    monkeypatch.setattr(native, "package", lambda: fake)
    return fake


def lower(x, kernel, **options):
    gradient = jax.grad(lambda x, kernel: jnp.square(conv(x, kernel, **options)).sum(), argnums=(0, 1))
    return jax.jit(gradient).lower(x, kernel)


def test_what_the_package_supports_is_computed_by_it(package):
    x, kernel, grouped = random_arrays(0, (8, 5, 5, 8), (3, 3, 8, 2), (3, 3, 4, 2))
    lower(x, kernel)
    assert sorted(package.used) == ["forward", "input_gradient", "kernel_gradient"]
    package.used.clear()
    lower(x, grouped, groups=2)
    lower(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert not package.used


def test_an_input_gradient_of_few_features_is_not(package):
    lower(*random_arrays(0, (8, 5, 5, 4), (3, 3, 4, 2)))
    assert sorted(package.used) == ["forward", "kernel_gradient"]


def test_the_gradient_of_max_pooling(package):
    """By the package where it may: in float32, on one device or on one share of a batch."""
    (x,) = random_arrays(0, (8, 7, 6, 2))
    gradient = jax.grad(lambda x: max_pool(x, (3, 2), stride=2, padding=(1, 0)).astype(jnp.float32).sum())
    assert (np.asarray(jax.jit(gradient)(x)) == 7).all()
    assert package.used == ["max_pool_gradient"]
    package.used.clear()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    jax.jit(gradient).lower(x.astype(jnp.bfloat16))
    jax.jit(gradient).lower(jax.device_put(x, NamedSharding(mesh, P("data"))))
    assert not package.used
    jax.pmap(gradient).lower(x[:, None])
    assert package.used == ["max_pool_gradient"]


def test_arrays_that_jit_divides_among_devices_are_not(package):
    x, kernel = random_arrays(0, (8, 5, 5, 4), (3, 3, 4, 2))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    lower(jax.device_put(x, NamedSharding(mesh, P("data"))), kernel)
    assert not package.used
    mapped = jax.shard_map(conv, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    jax.jit(mapped).lower(x, kernel)
    assert package.used == ["forward"]
    package.used.clear()
    jax.pmap(conv, in_axes=(0, None)).lower(x[:, None], kernel)
    assert package.used == ["forward"]


def test_switched_off_or_broken(monkeypatch, tmp_path):
    (tmp_path / "deepjax_native.py").write_text("raise OSError('libdnnl.so.3: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "deepjax_native", raising=False)
    native.package.cache_clear()
    try:
        monkeypatch.setenv("DEEPJAX_NATIVE", "0")
        assert native.package() is None
        native.package.cache_clear()
        monkeypatch.delenv("DEEPJAX_NATIVE")
        with pytest.raises(InputError, match="deepjax_native cannot be loaded .*libdnnl.so.3.*DEEPJAX_NATIVE=0"):
            native.package()
    finally:
        native.package.cache_clear()
