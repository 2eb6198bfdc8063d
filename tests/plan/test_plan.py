"""`deepjax plan`: exact figures against counts, memory against XLA's analysis in this process, time limits, errors."""

import json

import jax
import numpy as np
import pytest

from deepjax import cli
from deepjax.config import Config, Data, Devices, Optimizer
from deepjax.errors import InputError
from deepjax.plan import compiling, device_memory, inputs, plan, step
from deepjax.training.model import make_model

CIFAR = Data(name="cifar10")
SMALL = {"depth": 5, "width": 16, "norm": "batch"}  # three units


def config(model, batch, *, remat="none", **fields):
    options = fields.pop("options", {}) | ({} if remat == "none" else {"remat": remat})
    fields = {"data": CIFAR, "devices": Devices(count=1)} | fields
    return Config(model=model, model_options=options, batch_size=batch, **fields)


# Exact figures, without compiling


def test_figures_are_those_of_a_run_and_flops_three_forward_passes_and_what_is_recomputed():
    wanted = config("cifar_resnet20", 32, optimizer=Optimizer(name="adam", learning_rate=1e-3), ema=0.9)
    found = plan(wanted, quick=True)
    assert found.parameters == 269_722  # He et al. 2015, table 6: 0.27 M
    assert found.parameter_bytes == 4 * found.parameters
    assert found.optimizer_bytes - 2 * found.parameter_bytes in range(0, 100)  # two moments and a count
    moments = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert found.other_bytes == found.parameter_bytes + 4 * moments  # the average, and batch norms'
    assert found.inputs == inputs.Inputs((32, 32, 3), 10, 45_000, 45_000 * (3072 + 4))
    # The stem, three stages of six layers with the same work, of which two strided ones have half of it, the head.
    macs = 32 * 32 * 9 * 3 * 16 + (3 * 6 - 2 / 2) * (9 * 16 * 16 * 32 * 32) + 64 * 10
    assert found.macs == macs
    again = 3 * 2 * 2 * (9 * 16 * 16 * 32 * 32)  # of three stages two units of two layers
    none, unit, sqrt = found.choices
    assert none.flops == 2 * 32 * 3 * macs
    assert unit.flops == sqrt.flops == 2 * 32 * (3 * macs + again)


def test_networks_without_units_have_one_choice():
    assert [c.remat for c in plan(config("lenet5", 8), quick=True).choices] == ["none"]
    densenet = plan(config("cifar_densenet", 8, options={"depth": 7, "bottleneck": False}, remat="unit"), quick=True)
    assert ([c.remat for c in densenet.choices], densenet.remat) == (["none", "unit"], "unit")


def test_devices_share_a_batch():
    one = plan(config("mlp", 8, options=SMALL), quick=True)
    four = plan(config("mlp", 32, options=SMALL, devices=Devices(count=4)), quick=True)
    assert four.devices == 4
    assert [c.flops for c in four.choices] == [4 * c.flops for c in one.choices]
    assert one.choices[0].flops < one.choices[1].flops


def test_flops_do_not_count_what_a_line_search_computes_again():
    optimizer = Optimizer(name="lbfgs", learning_rate=1.0, line_search=True)
    plain, searched = (
        plan(config("mlp", 8, options=SMALL, **given), quick=True) for given in ({}, {"optimizer": optimizer})
    )
    assert [c.flops for c in searched.choices] == [c.flops for c in plain.choices]


def test_cpu_devices_share_the_memory():
    alone, shared = (device_memory(devices)[0] for devices in (1, 4))
    assert shared == alone // 4


def test_quick_compiles_nothing(monkeypatch):
    monkeypatch.setattr(compiling, "measure", None)
    monkeypatch.setattr("deepjax.plan.measure", None)
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    found = plan(config("mlp", 128, options={"depth": 1000, "width": 16}), quick=True)
    assert all(c.flops and c.total is None and c.fits is None and not c.stopped for c in found.choices)
    assert found.best is None


# Memory, compiled


def test_memory_is_what_xla_allocates(monkeypatch):
    """In a child process for each remat, and equal to the analysis of the same step compiled here."""
    monkeypatch.setattr("deepjax.plan.REMATS", ("none", "sqrt"))
    news, wanted = [], config("mlp", 64, options=SMALL)
    found = plan(wanted, report=news.append)
    assert [len(part.choices) for part in news] == [0, 1, 2]
    for choice in found.choices:
        model = make_model(step.with_remat(wanted, choice.remat), 10)
        with jax.default_matmul_precision("default"):  # as in a new process
            analysis = step.make(wanted, found.inputs, model).trace().lower().compile().memory_analysis()
        assert choice.temporaries == pytest.approx(analysis.temp_size_in_bytes, rel=0.02)
        new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        whole = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + new
        assert choice.total - found.inputs.resident == pytest.approx(whole, rel=0.02)
        assert choice.fits
        assert choice.compile_seconds > 0


@pytest.mark.slow
def test_deeper_networks_fit_with_less_kept(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    none, unit, sqrt = plan(config("cifar_resnet110", 32)).choices
    assert none.temporaries > unit.temporaries > sqrt.temporaries
    assert sqrt.temporaries < none.temporaries / 3
    assert none.flops < unit.flops


def test_a_time_limit_ends_a_compilation():
    found = plan(config("lenet5", 8), seconds=0.01)
    assert found.choices[0].stopped == "not compiled within 0.01 s"
    assert found.best is None


def test_a_compiler_that_fails_is_reported_in_one_line(monkeypatch):
    wanted = config("lenet5", 8)
    found = inputs.find(wanted)
    monkeypatch.setattr(compiling.sys, "executable", "/bin/false")
    assert compiling.measure(wanted, found, None, 60) == {"stopped": "the compiler ended with exit code 1"}


@pytest.fixture
def pretend(monkeypatch):
    """Measurements without a compiler: temporaries of 300, 200 and 100 MiB."""
    sizes = {"none": 300, "unit": 200, "sqrt": 100}

    def measure(config, found, remat, seconds):
        return {"arguments": 0, "outputs": 0, "aliased": 0, "temporaries": sizes[remat] * 2**20, "seconds": 1.0}

    monkeypatch.setattr("deepjax.plan.measure", measure)


def test_the_choice_with_the_fewest_flops_that_fits_is_best(pretend):
    wanted = config("mlp", 8, options=SMALL, data=Data(name="cifar10", placement="host"))
    plenty, tight, hopeless = (plan(wanted, limit=limit * 2**20) for limit in (300, 299, 99))
    assert (plenty.best.remat, tight.best.remat, hopeless.best) == ("none", "unit", None)
    assert [c.fits for c in tight.choices] == [False, True, True]


# Data


def test_data_that_are_known_need_not_be_there():
    assert inputs.find(Config(data=Data(name="mnist", validation=0.0))) == inputs.Inputs(
        (28, 28, 1), 10, 60_000, 60_000 * (784 + 4)
    )
    assert inputs.find(Config(data=Data(name="cifar100", image_size=64))).shape == (64, 64, 3)
    assert inputs.find(Config(data=Data(name="cifar100", placement="host"))).resident == 0
    assert inputs.find(Config(data=Data(name="digits"))) == inputs.Inputs((8, 8, 1), 10, 1297, 1297 * (64 + 4))
    assert inputs.find(Config(data=Data(name="spirals"))).shape == (2,)


def test_a_set_that_is_not_there_is_asked_for(tmp_path):
    missing = Config(data=Data(name="imagenet2012", image_size=224), data_dir=str(tmp_path))
    with pytest.raises(InputError, match="not prepared in .* or give --input H,W,C --classes N"):
        inputs.find(missing)
    with pytest.raises(InputError, match="not prepared"):  # classes alone are not enough
        inputs.find(missing, classes=1000)
    assert inputs.find(missing, (224, 224, 3), 1000) == inputs.Inputs((224, 224, 3), 1000, None, 0)


def test_a_file_of_arrays_is_looked_into(tmp_path):
    x, y = np.zeros((40, 6, 6, 3), np.uint8), np.arange(40) % 4
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    found = inputs.find(Config(data=Data(name=str(tmp_path / "own.npz"), validation=0.25)))
    assert found == inputs.Inputs((6, 6, 3), 4, 30, 30 * (108 + 4))


# Command line


def run(capsys, *arguments):
    code = cli.main(["plan", *arguments])
    return code, *capsys.readouterr()


def test_the_command_prints_a_table_and_json(capsys, pretend):
    options = ["cifar10_resnet20", "--model", "mlp", "--devices.count", "1", "--batch-size", "32"]
    code, out, _ = run(capsys, *options, "--memory", "0.4")
    lines = out.splitlines()
    assert (code, lines[0]) == (0, "cifar10_resnet20: mlp, batch 32, momentum, cpu")
    assert lines[1] == "cifar10: 32x32x3, 10 classes, 45,000 training examples"
    table = {line.split()[0]: line.split()[-1] for line in lines if line.startswith(("none", "unit", "sqrt"))}
    assert table == {"none": "no", "unit": "yes", "sqrt": "yes"}
    assert lines[-1] == "remat unit has the fewest FLOPs of those that fit: --model-options remat=unit"
    code, out, _ = run(capsys, *options, "--json", "--memory", "0.001")
    record = json.loads(out)
    assert (code, record["best"], record["parameters"]) == (1, None, 3072 * 256 + 256 * 256 + 256 * 10 + 522)
    assert [choice["remat"] for choice in record["choices"]] == ["none", "unit", "sqrt"]
    code, out, _ = run(capsys, *options, "--quick")
    assert code == 0
    assert "parameters         855,050" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "config 'nothing' is unknown"),
        (["digits", "--input", "3x3"], "--input '3x3' must be numbers separated by commas"),
        (["digits", "--memory", "-1"], "memory -1.0 must be greater than 0"),
        (["digits", "--memory", "nan"], "memory nan must be finite"),
        (["digits", "--classes", "0"], "classes 0 must be at least 1"),
        (["digits", "--input", "0,8,1"], "input 0 must be at least 1"),
        (["digits", "--data.validation", "-0.5"], "data.validation -0.5"),
        (["cifar10_resnet20", "--data.image-size", "-5"], "data.image_size -5"),
        (["cifar10_resnet20", "--data.validation", "0", "--patience", "3"], "patience 3"),
        (["digits", "--batch-size", "0"], "batch_size 0 must be at least 1"),
        (["digits", "--batch-size", "2000", "--devices.count", "1"], "larger than the training set of 1297 examples"),
        (["digits", "--model-options", "remat=sqr"], "remat 'sqr' is unknown"),
        (["digits", "--model", "lenet5", "--model-options", "remat=unit"], "no option 'remat'"),
        (["digits", "--model", "resnet18", "--input", "2,2"], "images"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
