import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax import cli, data
from deepjax.config import Augment, Config, Data, Devices, Optimizer
from deepjax.errors import InputError
from deepjax.plan import device_memory, graph, inputs, memory, plan
from deepjax.runs.workdir import Statistics
from deepjax.summary import summarize
from deepjax.training import experiment, sharding
from deepjax.training.run import make_model

CIFAR = Data(name="cifar10")
MIB = 2**20


def config(model, batch, *, remat="none", **fields):
    options = fields.pop("options", {}) | ({} if remat == "none" else {"remat": remat})
    fields = {"data": CIFAR, "devices": Devices(count=1)} | fields
    return Config(model=model, model_options=options, batch_size=batch, **fields)


def need(function, *arguments, donated=0):
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return memory.need(graph.of_step(jaxpr, "cpu", donated))


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


# Rules, on functions small enough to count by hand


def test_elementwise_chains_need_nothing():
    assert need(lambda x: jnp.tanh(x * 2 + 1) - 3, floats(1000)).temporaries == 0


def test_a_product_between_products_is_kept():
    found = need(lambda x, w: (x @ w) @ w, floats(8, 8), floats(8, 8))
    assert found.temporaries == 4 * 8 * 8


def test_memory_is_taken_again_when_its_value_is_dead():
    def chain(x, w):
        for _ in range(5):
            x = x @ w
        return x

    assert need(chain, floats(8, 8), floats(8, 8)).temporaries == 2 * 4 * 8 * 8


def test_what_a_convolution_reads_is_computed_for_it():
    """A cheap value lies in memory for a product, though other users compute it on their own."""
    found = need(lambda x, w: jnp.maximum(x, 0) @ w + jnp.maximum(x, 0), floats(8, 8), floats(8, 8))
    assert found.temporaries == 2 * 4 * 8 * 8  # the maximum, the product


def test_a_scan_keeps_stacks_for_its_gradient():
    def gradient(x, kernels):
        def loss(kernels):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, kernels)[0].sum()

        return jax.grad(loss)(kernels)

    def stacks(n):
        jaxpr = jax.make_jaxpr(gradient)(floats(16, 32), floats(n, 32, 32)).jaxpr
        forward = next(eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan")
        assert not forward.params["reverse"]
        return sum(v.aval.size * 4 for v in forward.outvars[1:])

    few, many = (need(gradient, floats(16, 32), floats(n, 32, 32)) for n in (10, 110))
    assert many.activations - few.activations == stacks(110) - stacks(10) > 0
    assert many.temporaries - few.temporaries == stacks(110) - stacks(10)  # the gradient's stack is an output


def test_a_donated_input_is_copied_if_it_is_read_after_its_successor():
    def tame(w, x):
        return w - (x @ w).sum(), x.sum()

    def wild(w, x):
        return w - (x @ w).sum(), jax.lax.sort(w)  # when the new w may have taken the old one's place

    product, copy = 4 * 16 * 32, 4 * 64 * 32
    arguments = floats(64, 32), floats(16, 64)
    assert need(tame, *arguments, donated=1).temporaries == pytest.approx(product, abs=8)
    assert need(wild, *arguments, donated=0).temporaries == pytest.approx(product, abs=8)
    assert need(wild, *arguments, donated=1).temporaries == pytest.approx(product + copy, abs=8)


def test_a_gradient_lies_where_its_parameter_was():
    def step(w, x):
        y = x @ w
        return w - x.T @ y, jax.lax.sort(y @ w.T)  # w is copied, since the sum may read it late

    y, copy, gradient = 4 * 16 * 32, 4 * 64 * 32, 4 * 64 * 32
    other = 4 * 16 * 64
    arguments = floats(64, 32), floats(16, 64)
    assert need(step, *arguments, donated=0).temporaries == y + other + gradient
    assert need(step, *arguments, donated=1).temporaries == y + other + copy


def test_equal_operations_are_one_but_not_over_a_barrier():
    def twice(x, w):
        return jnp.sin(x @ w).sum() + jnp.cos(x @ w).sum()

    def loss(x, w):
        return (jnp.tanh(jnp.tanh(x @ w) @ w) ** 2).sum()

    def products(function):
        jaxpr = jax.make_jaxpr(function)(floats(8, 8), floats(8, 8)).jaxpr
        return sum(operation.name == "dot_general" for operation in graph.of_step(jaxpr, "cpu", 0).operations)

    assert products(twice) == 1
    assert products(jax.grad(jax.checkpoint(loss))) > products(jax.grad(loss))
    assert products(jax.grad(jax.checkpoint(loss, prevent_cse=False))) == products(jax.grad(loss))


# Plans


def test_parameters_and_optimizer_are_those_of_a_run():
    found = plan(config("cifar_resnet20", 32, optimizer=Optimizer(name="adam", learning_rate=1e-3), ema=0.9))
    assert found.parameters == 269_722  # He et al. 2015, table 6: 0.27 M
    assert found.parameter_bytes == 4 * found.parameters
    assert found.optimizer_bytes - 2 * found.parameter_bytes in range(0, 100)  # two moments and a count
    moments = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert found.other_bytes == found.parameter_bytes + 4 * moments  # the average, and batch norms'
    assert found.inputs == inputs.Inputs((32, 32, 3), 10, 45_000, 45_000 * (3072 + 4))


def test_flops_are_three_forward_passes_and_what_is_computed_again():
    found = plan(config("cifar_resnet20", 32))
    macs = sum(layer.macs for layer in summarize(make_model(config("cifar_resnet20", 1), 10), (32, 32, 3)))
    assert found.macs == macs
    again = 3 * 2 * 2 * (9 * 16 * 16 * 32 * 32)  # of three stages two units of two layers, all with the same work
    none, unit, sqrt = found.choices
    assert none.flops == 2 * 32 * 3 * macs
    assert unit.flops == sqrt.flops == 2 * 32 * (3 * macs + again)


def test_what_remat_keeps_grows_as_it_should():
    shallow, deep = (plan(config("cifar_resnet", 8, options={"depth": depth})).choices for depth in (110, 1202))
    for remat, least, most in (("none", 9, 12), ("unit", 8, 12), ("sqrt", 2, 4)):
        a, b = (next(c for c in choices if c.remat == remat) for choices in (shallow, deep))
        assert least < b.activations / a.activations < most
        assert b.total > b.temporaries > b.activations
    assert [c.remat for c in sorted(deep, key=lambda c: -c.temporaries)] == ["none", "unit", "sqrt"]
    none, *_, sqrt = deep
    assert sqrt.temporaries < none.temporaries / 10


def test_compile_time_is_longer_for_more_layers_and_shorter_for_scans():
    def seconds(depth, **options):
        return plan(config("cifar_resnet", 8, options={"depth": depth, **options})).choices[0].compile_seconds

    assert 0 < seconds(20, scan=False) < seconds(56, scan=False) < 600
    assert seconds(1202) == pytest.approx(seconds(56), rel=0.1)


def test_of_what_fits_the_least_computing_is_chosen():
    generous, tight, hopeless = (
        plan(config("cifar_resnet110", 32), limit=int(limit * MIB)) for limit in (1000, 300, 100)
    )
    assert (generous.best.remat, tight.best.remat, hopeless.best) == ("none", "unit", None)
    assert [c.fits for c in tight.choices] == [False, True, True]


@pytest.mark.parametrize(
    "optimizer",
    [
        Optimizer(accumulate=4),
        Optimizer(lookahead=5),
        Optimizer(name="lbfgs", learning_rate=1.0, line_search=True),
        Optimizer(clip_adaptive=0.01),
    ],
)
def test_every_kind_of_step_is_planned(optimizer):
    found = plan(config("cifar_resnet", 8, options={"depth": 8, "width": 4}, optimizer=optimizer))
    assert all(choice.temporaries > choice.activations > 0 for choice in found.choices)


def test_cpu_devices_share_the_ram():
    alone, shared = (device_memory(devices)[0] for devices in (1, 4))
    assert shared == alone // 4


def test_networks_without_units_have_one_choice():
    assert [c.remat for c in plan(config("lenet5", 8)).choices] == ["none"]
    densenet = plan(config("cifar_densenet", 8, options={"depth": 22}, remat="unit"))
    assert ([c.remat for c in densenet.choices], densenet.remat) == (["none", "unit"], "unit")


def test_devices_share_a_batch():
    one = plan(config("cifar_resnet20", 32))
    four = plan(config("cifar_resnet20", 128, devices=Devices(count=4)))
    assert (four.devices, four.choices[0].temporaries) == (4, one.choices[0].temporaries)
    assert [c.flops for c in four.choices] == [4 * c.flops for c in one.choices]


def test_nothing_is_compiled_and_it_is_quick(monkeypatch):
    plan(config("cifar_resnet20", 8))  # what the first trace of all has to import

    def refuse(*_, **__):
        raise AssertionError("compiled")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    started = time.process_time()
    plan(config("cifar_resnet1202", 128))
    assert time.process_time() - started < 5


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
    with pytest.raises(InputError, match="not prepared in .* or say what to plan for: --input H,W,C --classes N"):
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


def test_the_command_prints_a_table_and_json(capsys):
    quick = ["cifar10_resnet20", "--devices.count", "1", "--batch-size", "32"]
    code, out, _ = run(capsys, *quick, "--memory", "0.2")
    lines = out.splitlines()
    assert (code, lines[0]) == (0, "cifar10_resnet20: cifar_resnet20, batch 32, momentum")
    assert lines[1] == "cifar10: 32x32x3, 10 classes, 45,000 training examples"
    table = {line.split()[0]: line.split()[-1] for line in lines if line.startswith(("none", "unit", "sqrt"))}
    assert table == {"none": "no", "unit": "yes", "sqrt": "yes"}
    assert lines[-1] == "remat unit computes the least of those that fit: --model-options remat=unit"
    code, out, _ = run(capsys, *quick, "--json", "--memory", "0.001")
    record = json.loads(out)
    assert (code, record["best"], record["parameters"]) == (1, None, 269_722)
    assert [choice["remat"] for choice in record["choices"]] == ["none", "unit", "sqrt"]


def test_help_and_config_names(capsys):
    code, out, _ = run(capsys)
    assert code == 2
    assert "usage: deepjax plan NAME-or-FILE" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "config 'nothing' is unknown"),
        (["digits", "--input", "3x3"], "--input '3x3' must be numbers with commas between"),
        (["digits", "--memory", "-1"], "--memory -1 must be a number of GiB above 0"),
        (["digits", "--memory", "nan"], "--memory nan must be a number of GiB above 0"),
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


# Against XLA

SMALL = {"shape": (64, 64, 3), "classes": 10}
CASES = {
    "digits": config("cifar_resnet32", 64, data=Data(augment=Augment(translate=1.0, scale=0.1)),
                     optimizer=Optimizer(name="nesterov")),
    "mlp": config("mlp", 128),
    "resnet20": config("cifar_resnet20", 32, data=Data(name="cifar10", augment=Augment(flip=True, crop=4))),
    "resnet110": config("cifar_resnet110", 32),
    "resnet110 unit": config("cifar_resnet110", 32, remat="unit"),
    "resnet110 sqrt": config("cifar_resnet110", 32, remat="sqrt"),
    "revnet110 reversible": config("cifar_revnet110", 32, remat="reversible"),
    "plain": config("cifar_plain20", 32),
    "preact": config("cifar_preact", 32, options={"depth": 29}),
    "wide": config("wide_resnet", 16, options={"depth": 16, "widen": 4}),
    "densenet": config("cifar_densenet", 16, options={"depth": 22}),
    "resnet18": config("resnet18", 8),
    "mobilenet_v2": config("mobilenet_v2", 8),
    "vgg11": config("vgg11", 8),
    "adam, average": config("cifar_resnet20", 16, optimizer=Optimizer(name="adam", learning_rate=1e-3), ema=0.99),
}  # fmt: skip
PHOTOGRAPHS = ("resnet18", "mobilenet_v2", "vgg11")


def compiled(config, shape, classes, examples):
    """XLA's memory analysis of the step that training runs, with a set of `examples` on the device if there are any."""
    images = np.zeros((examples or config.batch_size, *shape), np.uint8)
    split = data.Arrays(images, np.zeros(len(images), np.int32))
    dataset = data.Dataset("", tuple(map(str, range(classes))), shape, split, split, split)
    standardizer = data.Standardizer("channel", np.zeros(shape[-1], np.float32), np.ones(shape[-1], np.float32))
    devices = sharding.select_devices(1)
    exp = experiment.build(config, dataset, make_model(config, classes), devices, Statistics(standardizer))
    key = jax.random.key(0)
    rows = next(exp.loader.epoch(0))
    lowered = exp.step.lower(exp.shapes, exp.loader.data, rows, key)
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 3}).memory_analysis()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_memory_is_what_xla_says(name):
    """Temporaries, and the total of arguments, temporaries and outputs without a place of theirs, within 25 %."""
    given = SMALL if name in PHOTOGRAPHS else {}
    with jax.default_matmul_precision("default"):
        found = plan(CASES[name], **given)
        shape, classes, examples, resident = found.inputs
        real = dataclasses.replace(CASES[name].data, placement="device" if resident else "host")
        measured = compiled(dataclasses.replace(CASES[name], data=real), shape, classes, examples)
    choice = next(c for c in found.choices if c.remat == found.remat)
    assert choice.temporaries == pytest.approx(measured.temp_size_in_bytes, rel=0.25)
    total = (
        measured.argument_size_in_bytes
        + measured.output_size_in_bytes
        - measured.alias_size_in_bytes
        + measured.temp_size_in_bytes
    )
    assert choice.total == pytest.approx(total, rel=0.25)
    arguments = choice.total - choice.temporaries
    assert arguments == pytest.approx(total - measured.temp_size_in_bytes, rel=0.01)
