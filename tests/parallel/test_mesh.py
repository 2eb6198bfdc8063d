"""The mesh: which devices, and where rows and states lie."""

import chex
import numpy as np
import pytest

from deepjax import parallel
from deepjax.errors import InputError
from deepjax.parallel import make_mesh


def test_the_lectures_example_a_batch_of_50_is_25_on_each_of_two_devices():
    rows = make_mesh(2, "pmap", 50).to_devices({"x": np.zeros((50, 10), np.float32)})
    chex.assert_shape(rows["x"], (2, 25, 10))
    assert {shard.data.shape for shard in rows["x"].addressable_shards} == {(1, 25, 10)}
    rows = make_mesh(2, "jit", 50).to_devices({"x": np.zeros((50, 10), np.float32)})
    chex.assert_shape(rows["x"], (50, 10))
    assert {shard.data.shape for shard in rows["x"].addressable_shards} == {(25, 10)}


@pytest.mark.parametrize(("count", "batch"), [(0, 20), (3, 16), (9, 18), (-1, 16)])
def test_a_batch_that_the_devices_do_not_divide_is_refused_with_both_numbers(count, batch):
    with pytest.raises(InputError) as error:
        make_mesh(count, batch_size=batch)
    if count in (0, 3):
        assert str(batch) in str(error.value)
        assert str(count or 8) in str(error.value)


def test_a_state_lies_whole_on_every_device_in_both_forms():
    for strategy in ("jit", "pmap"):
        mesh = make_mesh(4, strategy)
        (leaf,) = mesh.replicate([np.arange(6.0)])
        assert len(mesh) == len(leaf.addressable_shards) == 4
        assert all(shard.data.shape == (6,) for shard in leaf.addressable_shards)


def test_a_single_process_writes():
    assert parallel.is_main()
