"""Pretrained weights, frozen groups and their batch norms in a run."""

import dataclasses
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import helpers
from deepjax import cli, inference, training, weights, zoo
from deepjax.cli.configs import configs, load
from deepjax.config import Config, Data, Devices, Optimizer
from deepjax.config import check as check_fields
from deepjax.errors import InputError
from deepjax.optimizers.times import Times
from deepjax.training import freezing, setup
from deepjax.weights.files import save_state_dict


def test_which_patterns_freeze_until_when():
    config = Config(
        pretrained="x",
        freeze=("stem*", "stage1*"),
        thaw=(1.0, 2.5),
        freeze_moments=True,
        optimizer=Optimizer(groups={"head/*": {"learning_rate": 1.0}, "stage1*": {"weight_decay": 0.0}}),
    )
    assert freezing.frozen_optimizer(config).groups == {
        "head/*": {"learning_rate": 1.0},
        "stage1*": {"weight_decay": 0.0, "frozen_until": 2.5},
        "stem*": {"frozen_until": 1.0},
    }
    assert freezing.frozen_moments(config, Times(10, 10)) == {"head/*": 0, "stage1*": 25, "stem*": 10}
    forever = dataclasses.replace(config, thaw=(), optimizer=Optimizer())
    assert freezing.frozen_moments(forever, Times(10, 10)) == {"stem*": None, "stage1*": None}
    assert freezing.frozen_moments(dataclasses.replace(forever, freeze_moments=False), Times(10, 10)) is None
    shared = dataclasses.replace(forever, thaw_share=0.5, epochs=5)
    assert freezing.thaws(shared) == {"stem*": 2.5, "stage1*": 2.5}
    for changes, message in (
        ({"thaw": (1.0, 2.0, 3.0)}, "3 epochs for the 2 patterns"),
        ({"thaw_share": 0.5}, "both set the time"),
        ({"thaw": (0.0,)}, "must be greater than 0"),
        ({"thaw": (), "thaw_share": 1.5}, r"thaw_share 1.5 must be in \[0, 1\]"),
        ({"freeze": (), "freeze_moments": False}, "thaw .* does nothing without freeze"),
        ({"pretrained": ""}, "would keep random numbers"),
        ({"pretrained": "", "freeze": (), "reset_head": False}, "reset_head False does nothing"),
        ({"freeze": (), "optimizer": Optimizer()}, "freeze_moments True does nothing"),
    ):
        changed = dataclasses.replace(config, **changes)
        with pytest.raises(InputError, match=message):  # noqa: PT012  each field, then what goes together
            check_fields(changed)
            freezing.check(changed)
    with pytest.raises(InputError, match="'stage1\\*' is a group"):
        freezing.frozen_optimizer(dataclasses.replace(config, thaw=()))


def make_folder(folder, classes=("cat", "dog", "owl"), train=8, val=2):
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (*rng.integers(40, 60, 2), 3), dtype=np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(folder / split / name / f"{i}.jpg")
    return folder


OPTIONS = {"depth": 4, "width": 6, "norm": "batch"}
SIDE = 12


@pytest.fixture(autouse=True, scope="module")
def undrawn():
    with helpers.empty_figures():
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """(folder, variables): photographs, and a file of random weights of a network of ten classes."""
    folder = tmp_path_factory.mktemp("finetune")
    make_folder(folder / "set")
    network = zoo.create("mlp", num_classes=10, **OPTIONS).clone(usual_input=(SIDE, SIDE, 3))
    variables = helpers.draw_variables(network, jnp.zeros((1, SIDE, SIDE, 3)))
    recipe = weights.Preprocessing(14, SIDE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    source = {"network": "mlp", "options": OPTIONS}
    found = weights.Pretrained(network, variables, recipe, tuple("abcdefghij"), source)
    weights.save_pretrained(folder / "mlp.safetensors", found)
    return folder, variables


def command(home, *options):
    return [
        *("train", "finetune", "--model", "mlp", "--pretrained", str(home / "mlp.safetensors")),
        *("--data-dir", str(home / "set"), "--data.image-size", str(SIDE), "--batch-size", "9", "--epochs", "2"),
        *("--model-options", *(f"{name}={value}" for name, value in OPTIONS.items())),
        *("--data.validation", "0.25", "--keep", "9", "--log-every", "1", "--devices.count", "1"),
        *map(str, options),
    ]


def states(folder):
    return list(helpers.stored(folder).values())


def changed(before, after):
    """{top-level name: whether any of its numbers differ}."""
    return {
        name: any((a != b).any() for a, b in zip(jax.tree.leaves(before[name]), jax.tree.leaves(after[name])))
        for name in before
    }


@pytest.fixture(scope="module")
def tuned(home):
    """The README's command, on small images."""
    folder, _ = home
    assert cli.main(command(folder, "--freeze", "first*", "--workdir", folder / "tuned")) == 0
    return folder / "tuned"


def test_a_run_killed_while_it_first_saved_begins_with_the_weights_again(home, tuned, tmp_path):
    folder, variables = home
    half = tmp_path / "half"
    shutil.copytree(tuned, half)
    (half / "summary.json").unlink()
    for path in (half / "checkpoints").iterdir():
        path.rename(path.with_name(f"{path.name}.orbax-checkpoint-tmp"))
    assert cli.main(command(folder, "--freeze", "first*", "--workdir", half)) == 0
    kernel = states(half)[-1]["params"]["first"]["kernel"]
    np.testing.assert_array_equal(kernel, variables["params"]["first"]["kernel"])


def test_frozen_parameters_stay_to_the_bit_and_the_head_is_new(home, tuned):
    variables = home[1]
    for state in states(tuned):
        moved = changed(variables["params"], state["params"] | {"head": variables["params"]["head"]})
        assert moved == {"first": False, "first_norm": False, "hidden": True, "head": False}
        assert state["params"]["head"]["kernel"].shape == (6, 3)
        assert changed(variables["batch_stats"], state["batch_stats"])["first_norm"]  # as PyTorch's go on


def test_pytorchs_files_are_read_and_standardize_as_imagenets(home):
    network = zoo.create("resnet18", num_classes=10, width=4)
    variables = helpers.draw_variables(network, jnp.zeros((1, 32, 32, 3)))
    path = home[0] / "resnet18.safetensors"
    save_state_dict(path, weights.to_torch(network, variables))
    data = Data("folder", image_size=32, validation=0.25)
    given = {"model": "resnet18", "model_options": {"width": 4}, "pretrained": str(path)}
    config = Config(data, data_dir=str(home[0] / "set"), batch_size=8, **given)
    exp = setup.setup(config, setup.check(config), home[0] / "none")
    start, head = dict(exp.variables["params"]), exp.variables["params"]["head"]
    assert head["kernel"].shape == (32, 3)
    chex.assert_trees_all_equal(start | {"head": variables["params"]["head"]}, dict(variables["params"]))
    chex.assert_trees_all_equal(dict(exp.variables["batch_stats"]), dict(variables["batch_stats"]))
    standardizer = exp.statistics.standardizer
    np.testing.assert_allclose(standardizer.shift, (0.485, 0.456, 0.406), rtol=1e-6)
    np.testing.assert_allclose(standardizer.scale, (0.229, 0.224, 0.225), rtol=1e-6)


def test_a_new_head_has_ten_times_the_rate():
    """One step by plain SGD: the head moves by 0.01 times its gradient, the rest by 0.001 times."""
    optimizer = dataclasses.replace(freezing.frozen_optimizer(load(configs()["finetune"])), name="sgd")
    optimizer = setup.make_optimizer(optimizer, lambda count: 0.001)
    params = {name: {"kernel": np.ones((2, 3), np.float32)} for name in ("first", "head")}
    updates = jax.jit(lambda params: optimizer.update(params, optimizer.init(params), params)[0])(params)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.01, rtol=1e-6)
    np.testing.assert_allclose(updates["first"]["kernel"], -0.001, rtol=1e-6)


@pytest.fixture(scope="module")
def thawed(home):
    folder = home[0] / "thawed"
    options = ("--freeze", "first*", "hidden*", "--thaw", 1, 2, "--freeze-moments", "--epochs", 3, "--workdir", folder)
    assert cli.main(command(home[0], *options)) == 0
    return folder


def test_thawed_groups_move_from_their_epoch_on_and_moments_can_be_kept(home, thawed):
    variables = home[1]
    first, second, third = states(thawed)
    for what in ("params", "batch_stats"):
        start = variables[what] | ({"head": first[what]["head"]} if what == "params" else {})
        groups = [name for name in start if name != "head"]
        assert {name: changed(start, first[what])[name] for name in groups} == dict.fromkeys(groups, False)
        moved = changed(start, second[what])
        assert {name: moved[name] for name in groups} == {name: name.startswith("first") for name in groups}
        assert all(changed(start, third[what])[name] for name in groups)
    record = json.loads((thawed / "data.json").read_text())
    np.testing.assert_allclose(record["mean"], (0.5, 0.4, 0.3), rtol=1e-6)  # the weights' own


def test_linear_probing_freezes_all_but_the_head(home):
    folder, variables = home
    options = ("--freeze", "*", "--epochs", 1, "--workdir", folder / "probe")
    assert cli.main(command(folder, *options)) == 0
    (state,) = states(folder / "probe")
    moved = changed(variables["params"], state["params"] | {"head": variables["params"]["head"]})
    assert not any(moved.values())


def test_a_run_goes_on_without_its_source_and_bit_identically(home):
    folder, _ = home
    path, workdir = folder / "copy.safetensors", folder / "stopped"
    shutil.copy(folder / "mlp.safetensors", path)
    options = ("--pretrained", path, "--freeze", "first*", "--thaw", 1, "--workdir", workdir)
    assert cli.main(command(folder, *options)) == 0
    whole = states(workdir)
    (workdir / "summary.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "4")
    path.rename(folder / "gone.safetensors")
    assert cli.main(command(folder, *options)) == 0
    for one, two in zip(whole, states(workdir), strict=True):
        chex.assert_trees_all_equal(one, two)


def test_a_runs_folder_is_a_source_with_its_head_or_without(home, thawed):
    folder, _ = home
    run = inference.load_run(thawed)
    plain = {"freeze": (), "thaw": (), "freeze_moments": False}
    config = dataclasses.replace(run.config, pretrained=str(thawed), **plain)
    for keeps in (True, False):
        again = dataclasses.replace(config, reset_head=not keeps, workdir=str(folder / f"again{keeps}"))
        exp = setup.setup(again, setup.check(again), folder / f"again{keeps}")
        state = exp.initial_state(print)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), dict(state.params), dict(run.variables["params"]))
        assert same.pop("head") == {"kernel": keeps, "bias": keeps}
        assert jax.tree.all(same)
        np.testing.assert_array_equal(exp.statistics.standardizer.shift, run.standardizer.shift)
    other = dataclasses.replace(config, data=Data(name="digits"), data_dir="", reset_head=True)
    with pytest.raises(InputError, match="first"):
        setup.setup(other, setup.check(other), folder / "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pretrained", "none.safetensors"], "none.safetensors does not exist"),
        (["--pretrained", "resnt18"], "did you mean 'resnet18"),
        (["--pretrained", "resnet50.tv2_in1k"], "is of the network resnet50, model is mlp"),
        (["--no-reset-head"], "(10,), but the network's have (3,)"),
        (["--model-options", "depth=4", "width=7", "norm=batch"], "(6,), but the network's have (7,)"),
        (["--model", "resnet34", "--model-options", "width=4"], "is of the network mlp, model is resnet34"),
        (["--freeze", "stemm*"], "freeze (optimizer.groups) 'stemm*' matches no parameter"),
        (["--init", "lsuv"], "both set the initial parameters"),
        (["--data-dir", ""], "folder: needs --data-dir"),
        (["--data-dir", "nowhere"], "nowhere: no such folder"),
        (["--thaw", "2"], "does nothing without freeze"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(home, options, message, capsys, monkeypatch):
    folder, _ = home
    monkeypatch.chdir(folder)
    capsys.readouterr()
    assert cli.main(command(folder, "--workdir", "refused", *options)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err
    assert not (folder / "refused").exists()


def test_runs_on_other_inputs_than_the_networks_usual_one_are_sources_too(tmp_path):
    config = Config(
        data=Data(name="digits"),
        model="mlp",
        model_options={"depth": 2, "width": 4},
        devices=Devices(count=1),
        epochs=1,
        batch_size=500,
        workdir=str(tmp_path / "digits"),
    )
    training.train(config)
    config = dataclasses.replace(config, pretrained=str(tmp_path / "digits"), freeze=("first*",))
    exp = setup.setup(config, setup.check(config), tmp_path / "again")
    stem = inference.load_run(tmp_path / "digits").variables["params"]["first"]["kernel"]
    np.testing.assert_array_equal(exp.initial_state(print).params["first"]["kernel"], stem)
    (tmp_path / "lost" / "checkpoints" / "3").mkdir(parents=True)  # Orbax takes it for none
    with pytest.raises(InputError, match="was not read, because the run has checkpoints"):
        setup.setup(config, setup.check(config), tmp_path / "lost").initial_state(print)
    whole = dataclasses.replace(config, data=Data(name="digits", standardize="zca", epsilon=0.1))
    with pytest.raises(InputError, match=r"set data\.standardize channel"):
        setup.setup(whole, setup.check(whole), tmp_path / "again")
