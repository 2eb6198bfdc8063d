"""The three maps of deepjax_native against float64 NumPy, in all contexts that call them."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import reference
from cases import LAYERS, MAPS, arguments, arrays_of, check, random_case
from reference import Axis, Form

native = pytest.importorskip("deepjax_native", reason="deepjax_native is not installed: pip install ./native")


@pytest.mark.parametrize("seed", range(120))
def test_random_forms(seed):
    form, *numbers = random_case(seed)
    arrays = arrays_of(seed, form, *numbers)
    for name in MAPS:
        result = getattr(native, name)(*map(jnp.asarray, arguments(name, *arrays)), form)
        check(name, form, arrays, result)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", MAPS)
def test_layers_of_networks(layer, name):
    form, *numbers = LAYERS[layer]
    arrays = arrays_of(0, form, *numbers)
    check(name, form, arrays, jax.jit(partial(getattr(native, name), form=form))(*arguments(name, *arrays)))


def test_empty_batch():
    form = Form((Axis(5, 3, 1, 1, 1, 1),), 1)
    x, kernel, dy = arrays_of(0, form, 0, 2, 3)
    assert native.forward(x, kernel, form).shape == (0, 5, 3)
    assert native.input_gradient(dy, kernel, form).shape == (0, 5, 2)
    np.testing.assert_array_equal(native.kernel_gradient(x, dy, form), np.zeros((3, 2, 3)))


@pytest.mark.parametrize("name", MAPS)
def test_scan(name):
    form = Form((Axis(9, 3, 1, 1, 1, 1),) * 2, 1)
    cases = [arrays_of(seed, form, 4, 8, 8) for seed in range(5)]
    call = partial(getattr(native, name), form=form)
    stacked = [jnp.stack(a) for a in zip(*(arguments(name, *c) for c in cases))]
    _, results = jax.jit(lambda a: jax.lax.scan(lambda _, ab: (None, call(*ab)), None, a))(stacked)
    for arrays, result in zip(cases, results):
        check(name, form, arrays, result)


def test_chain_of_maps_in_one_program():
    form = Form((Axis(8, 3, 1, 1, 1, 1),) * 2, 1)
    x, kernel, _ = arrays_of(0, form, 6, 16, 16)

    @jax.jit
    def program(x, kernel):
        y = native.forward(jax.nn.relu(native.forward(x, kernel, form)), kernel, form)
        return native.input_gradient(y, kernel, form), native.kernel_gradient(x, y, form)

    y = reference.forward(np.maximum(reference.forward(x, kernel, form), 0), kernel, form)
    dx, dkernel = program(x, kernel)
    for result, expected in (
        (dx, reference.input_gradient(y, kernel, form)),
        (dkernel, reference.kernel_gradient(x, y, form)),
    ):
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_threads_at_once():
    """Eight threads call programs of different shapes; the results have the bits that each has alone."""
    cases = [random_case(seed) for seed in range(300, 316)]
    jobs = []
    for seed, (form, *numbers) in enumerate(cases):
        arrays = arrays_of(seed, form, *numbers)
        for name in MAPS:
            program = jax.jit(partial(getattr(native, name), form=form))
            jobs.append((program, arguments(name, *arrays), np.asarray(program(*arguments(name, *arrays)))))
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda job: np.asarray(job[0](*job[1])), jobs * 5))
    for (_, _, alone), result in zip(jobs * 5, results):
        np.testing.assert_array_equal(result, alone)


SWEEP = """
import deepjax_native as native
from cases import LAYERS, MAPS, arguments, arrays_of, check, random_case
cases = list(LAYERS.values())
for seed in range(400, 520):
    form, batch, *features = random_case(seed)
    cases.append((form, 1 + batch % 3, *features))
for form, *numbers in cases:
    arrays = arrays_of(0, form, *numbers)
    for name in MAPS:
        check(name, form, arrays, getattr(native, name)(*arguments(name, *arrays), form))
print("done")
"""

DEVICES = """
import jax, numpy as np, deepjax_native as native
from jax.sharding import Mesh, PartitionSpec as P
from cases import arrays_of, check
from reference import Axis, Form
form = Form((Axis(9, 3, 1, 1, 1, 1),) * 2, 1)
arrays = arrays_of(0, form, 48, 8, 16)
mesh = Mesh(jax.devices(), "devices")
assert mesh.size == 8
def maps(x, kernel, dy):
    vary = jax.lax.pcast(kernel, "devices", to="varying")
    dkernel = jax.lax.psum(native.kernel_gradient(x, dy, form), "devices")
    return {
        "forward": native.forward(x, vary, form), "input_gradient": native.input_gradient(dy, vary, form),
        "kernel_gradient": dkernel,
    }
split = P("devices")
specs = {"forward": split, "input_gradient": split, "kernel_gradient": P()}
program = jax.jit(jax.shard_map(maps, mesh=mesh, in_specs=(split, P(), split), out_specs=specs))
for _ in range(20):
    for name, result in program(*arrays).items():
        check(name, form, arrays, result)
print("done")
"""


@pytest.mark.parametrize("script", [SWEEP, DEVICES], ids=["one device", "eight devices at once"])
@pytest.mark.parametrize("threads", ["1", "3", "8"])
def test_numbers_of_threads(script, threads):
    """In a process of eight devices, XLA has eight threads, so that this many parts are computed at once."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": threads,
    }
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.stdout.strip() == "done", run.stderr


def test_what_is_supported(monkeypatch):
    axis = Axis(9, 3, 1, 1, 1, 1)
    assert native.supports(Form((axis,) * 3, 2), jnp.float32)
    assert not native.supports(Form((axis,) * 4, 1), jnp.float32)
    assert not native.supports(Form((axis,), 1), jnp.bfloat16)
    assert not native.supports(Form((axis._replace(high=-1),), 1), jnp.float32)
    monkeypatch.setenv("DEEPJAX_NATIVE", "0")
    assert not native.supports(Form((axis,), 1), jnp.float32)
