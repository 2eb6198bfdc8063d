"""`deepjax bench layers`: every convolution of a network once, the same maps in every system."""

import json

import jax
import pytest
from numpy.testing import assert_allclose

from deepjax import cli, zoo
from deepjax.benchmarks import layer_maps, layers, worker
from deepjax.benchmarks.layers import Layer
from deepjax.errors import InputError
from deepjax.summary import summarize

STRIDED = Layer((9, 8), 4, 6, (3, 3), (2, 2), ((1, 1), (1, 1)), 1, (5, 4))
GROUPED = Layer((6, 6), 4, 8, (3, 3), (1, 1), ((1, 1), (1, 1)), 2, (6, 6))
UNEVEN = Layer((8, 8), 3, 5, (3, 3), (2, 2), ((0, 1), (0, 1)), 1, (4, 4))


@pytest.mark.parametrize("name", ["cifar_resnet20", "mobilenet_v2", "alexnet_paper"])
def test_every_convolution_is_found_with_its_multiply_adds(name):
    found = layers.convolutions(name)
    rows = summarize(zoo.create(name), zoo.usual_input(name))
    dense = sum(row.macs for row in rows if row.kind == "Dense")
    assert sum(calls * layer.macs for layer, calls in found.items()) == sum(row.macs for row in rows) - dense


def test_equal_convolutions_are_one():
    found = layers.convolutions("cifar_resnet20")
    assert found[Layer((32, 32), 16, 16, (3, 3), (1, 1), ((1, 1), (1, 1)), 1, (32, 32))] == 6
    assert sum(found.values()) == 19


@pytest.mark.parametrize("layer", [STRIDED, GROUPED, UNEVEN], ids=["strided", "grouped", "uneven"])
@pytest.mark.parametrize("which", layer_maps.MAPS)
def test_all_systems_compute_the_same_map(layer, which):
    values = {}
    for system in layer_maps.systems():
        program = worker.load(layer_maps.job(system, which, layer._asdict(), 2, "float32", 1))
        list(program.prepare())
        values[system] = program.step()
    if layer is UNEVEN and which == "input_gradient":
        values.pop("torch", None)  # its x includes the zeros
    for value in values.values():
        assert_allclose(value, values["deepjax"], rtol=1e-5)


def test_the_input_of_a_map_is_what_the_layer_says():
    x, kernel, dy = layer_maps.arrays(GROUPED._asdict(), 2)
    assert (x.shape, kernel.shape, dy.shape) == ((2, 6, 6, 4), (3, 3, 2, 8), (2, 6, 6, 8))
    assert jax.eval_shape(layer_maps._conv("lax", GROUPED._asdict()), x, kernel).shape == dy.shape


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"name": "resnet5"}, "model 'resnet5' is unknown; did you mean"),
        ({"name": "mlp"}, "model mlp has no convolution"),
        ({"batch": 0}, "batch 0"),
        ({"count": 0}, "rounds 0"),
        ({"dtypes": ["int8"]}, "dtype 'int8'"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, options, named):
    with pytest.raises(InputError, match=named):
        layers.run(tmp_path / "out", **{"name": "alexnet_r"} | options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_benchmark_runs_at_a_small_size(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(layers, "convolutions", lambda name: {STRIDED: 3})
    arguments = ["alexnet_r", "--batch", "2", "--threads", "1", "--rounds", "1", "--out", str(tmp_path / "out")]
    assert cli.main(["bench", "layers", *arguments]) == 0
    cells = json.loads((tmp_path / "out" / "layers.json").read_text())["cells"]
    assert [cell["map"] for cell in cells] == list(layer_maps.MAPS)
    for cell in cells:
        values = [found["loss"] for found in cell["systems"].values()]
        assert_allclose(values, values[0], rtol=1e-4)
        assert cell["systems"]["lax"]["ratio"]["median"] > 0
    assert "| 9x8x4 | 3x3 | 2x2 | 6 | 1 | 3 | kernel gradient |" in (tmp_path / "out" / "layers.md").read_text()
    assert "kernel gradient" in capsys.readouterr().out
