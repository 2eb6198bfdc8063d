"""Auxiliary heads in the step; pretrained weights, frozen groups and their batch norms in a run."""

import dataclasses
import json
import shutil
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import helpers
from deepjax import cli, inference, training, weights, zoo
from deepjax.cli.configs import configs, load
from deepjax.config import Config, Data, Devices, Optimizer
from deepjax.config import check as check_fields
from deepjax.errors import InputError
from deepjax.layers import BatchNorm
from deepjax.parallel import make_mesh
from deepjax.tasks import Classification
from deepjax.training import freezing, init_state, setup, train_step
from deepjax.units import stack
from deepjax.weights.files import save_state_dict

KEY = jax.random.key(0)


class Headed(nn.Module):
    """Logits, and in training those of two auxiliary heads."""

    auxiliary_weight = 0.3

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        h = nn.relu(nn.Dense(8, name="hidden")(x))
        h = BatchNorm(name="norm")(h, train=train, mask=mask)
        logits = nn.Dense(4, name="head")(h)
        if train or self.is_initializing():
            others = nn.Dense(4, name="auxiliary1")(x), nn.Dense(4, name="auxiliary2")(h)
        return (logits, *others) if train else logits


def step_of(model, optimizer=None, of_task={}, **options):  # noqa: B006
    return partial(
        train_step,
        model=model,
        optimizer=optimizer or optax.sgd(0.1),
        schedule=lambda count: 0.1,
        task=Classification(tuple("abcd"), auxiliary_weight=getattr(model, "auxiliary_weight", 0.0), **of_task),
        **options,
    )


def batch_of(size, valid, features=6, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.standard_normal((size, features)).astype(np.float32),
        "label": rng.integers(0, 4, size).astype(np.int32),
        "mask": np.arange(size) < valid,
    }


def entropy(logits, targets):
    logits = np.asarray(logits, np.float64)
    return -(targets * (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))).sum(-1)


def test_auxiliary_heads_join_the_loss_by_their_weight():
    state, batch = init_state(Headed(), optax.sgd(0.1), KEY, (6,)), batch_of(8, 5)
    new, metrics = jax.jit(step_of(Headed()))(state, batch, KEY)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    call = {"train": True, "mask": batch["mask"], "mutable": ["batch_stats"]}
    (logits, *others), moments = Headed().apply(variables, batch["image"], **call)
    losses = [entropy(each, np.eye(4)[batch["label"]])[:5].mean() for each in (logits, *others)]
    np.testing.assert_allclose(metrics["loss"], losses[0] + 0.3 * (losses[1] + losses[2]), rtol=1e-6)
    wrong = np.asarray(logits).argmax(-1)[:5] != batch["label"][:5]
    np.testing.assert_allclose(metrics["error"], wrong.mean(), rtol=1e-6)
    chex.assert_trees_all_close(new.batch_stats, moments["batch_stats"], rtol=1e-6)
    # The first head sees x alone: its gradient is 0.3 times the softmax's error, times x.
    probabilities = np.exp(np.asarray(others[0], np.float64))
    probabilities /= probabilities.sum(-1, keepdims=True)
    error = (probabilities - np.eye(4)[batch["label"]])[:5] / 5
    gradient = 0.3 * batch["image"][:5].T @ error
    moved = state.params["auxiliary1"]["kernel"] - new.params["auxiliary1"]["kernel"]
    np.testing.assert_allclose(moved / 0.1, gradient, rtol=2e-4, atol=1e-6)


def test_auxiliary_heads_without_a_weight_are_refused():
    class Weightless(Headed):
        auxiliary_weight = 0.0

    state = init_state(Weightless(), optax.sgd(0.1), KEY, (6,))
    with pytest.raises(InputError, match="2 auxiliary outputs in training, but has no auxiliary_weight"):
        step_of(Weightless())(state, batch_of(4, 4), KEY)


def test_auxiliary_heads_mix_and_accumulate_as_the_logits_do():
    def mix(key, image, label, mask):
        targets = 0.5 * (jnp.eye(4)[label] + jnp.eye(4)[label[::-1]])
        return image, targets

    optimizer = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    step = jax.jit(step_of(Headed(), optimizer, {"mix": mix, "smoothing": 0.1}, accumulate=2))
    start = state = init_state(Headed(), optimizer, KEY, (6,))
    batch = batch_of(8, 8)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    (logits, *others), _ = Headed().apply(variables, batch["image"], train=True, mutable=["batch_stats"])
    state, metrics = step(state, batch, KEY)
    targets = 0.9 * 0.5 * (np.eye(4)[batch["label"]] + np.eye(4)[batch["label"][::-1]]) + 0.1 / 4
    losses = [entropy(each, targets).mean() for each in (logits, *others)]
    np.testing.assert_allclose(metrics["loss"], losses[0] + 0.3 * (losses[1] + losses[2]), rtol=1e-6)
    chex.assert_trees_all_equal(state.params, start.params)  # half of an update
    state, _ = step(state, batch, KEY)
    assert (state.params["auxiliary2"]["kernel"] != start.params["auxiliary2"]["kernel"]).all()


@pytest.mark.parametrize("strategy", ["jit", "pmap"])
def test_auxiliary_heads_on_several_devices(strategy):
    """pmap with unmasked halves that are equal has the moments of the whole batch, too."""
    if jax.local_device_count() < 2:
        pytest.skip("needs two devices")
    half = batch_of(4, 4)
    batch = jax.tree.map(lambda x: np.concatenate([x, x]), half)
    mesh = make_mesh(2, strategy)
    pure = step_of(Headed())

    def step(state, data, rows, key, axis_name=None):
        return pure(state, rows, key, axis_name=axis_name)

    state = init_state(Headed(), optax.sgd(0.1), KEY, (6,))
    alone, metrics = jax.jit(pure)(state, batch, KEY)
    found, others = mesh.step(step)(mesh.replicate(state), (), mesh.to_devices(batch), KEY)
    chex.assert_trees_all_close(found.params, alone.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(others["loss"], metrics["loss"], rtol=1e-6)


class Unit(nn.Module):
    frozen: bool = False

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        x = x + nn.Dense(x.shape[-1], name="dense")(x)
        return BatchNorm(name="norm")(x, train=train and not self.frozen, mask=mask)


class Normed(nn.Module):
    """Two batch norms and a scan over two more; `frozen`: the first and the scan's as in evaluation."""

    frozen: bool = False

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        x = nn.Dense(6, name="first")(x)
        x = BatchNorm(name="first_norm")(x, train=train and not self.frozen, mask=mask)
        x = stack(Unit(self.frozen), 2, name="rest")(x, train=train, mask=mask)
        x = BatchNorm(name="last_norm")(nn.relu(x), train=train, mask=mask)
        return nn.Dense(4, name="head")(x)


def test_kept_moments_are_those_of_evaluation_until_the_thaw():
    state = init_state(Normed(), optax.sgd(0.1), KEY, (6,))
    plain, evaluated = jax.jit(step_of(Normed())), jax.jit(step_of(Normed(frozen=True)))
    kept = jax.jit(step_of(Normed(), frozen_moments={"first*": 2, "*rest*": 2}))
    always = jax.jit(step_of(Normed(), frozen_moments={"*head*": 0, "first*": None, "rest*": None}))
    for count in range(3):
        batch = batch_of(8, 6, seed=count)
        expected, _ = (evaluated if count < 2 else plain)(state, batch, KEY)
        chex.assert_trees_all_close(kept(state, batch, KEY)[0], expected, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(always(state, batch, KEY)[0], evaluated(state, batch, KEY)[0], rtol=1e-5, atol=1e-6)
        before, after = state.batch_stats, expected.batch_stats
        assert bool((before["first_norm"]["mean"] == after["first_norm"]["mean"]).all()) == (count < 2)
        assert bool((before["last_norm"]["mean"] != after["last_norm"]["mean"]).any())
        state = expected


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
    assert freezing.frozen_moments(config, 10) == {"head/*": 0, "stage1*": 25, "stem*": 10}
    forever = dataclasses.replace(config, thaw=(), optimizer=Optimizer())
    assert freezing.frozen_moments(forever, 10) == {"stem*": None, "stage1*": None}
    assert freezing.frozen_moments(dataclasses.replace(forever, freeze_moments=False), 10) is None
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


NETWORKS = {"resnet18": {"width": 4}, "cifar_resnet": {"width": 4, "depth": 8}}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """(folder, {network: variables}): photographs, and files of random weights of two networks of ten classes.

    FOLDER/resnet18.safetensors has PyTorch's layout, FOLDER/cifar_resnet.safetensors ours.
    """
    folder, found = tmp_path_factory.mktemp("finetune"), {}
    make_folder(folder / "set")
    rng, x = np.random.default_rng(5), jnp.zeros((1, 32, 32, 3))
    for name, options in NETWORKS.items():
        network = zoo.create(name, num_classes=10, **options)
        variables = jax.device_get(jax.jit(partial(network.init, x=x, train=False))(jax.random.key(9)))
        variables["batch_stats"] = jax.tree.map(
            lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), variables["batch_stats"]
        )
        found[name] = network, variables
    save_state_dict(folder / "resnet18.safetensors", weights.to_torch(*found["resnet18"]))
    recipe = weights.Preprocessing(36, 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    source = {"network": "cifar_resnet", "options": NETWORKS["cifar_resnet"]}
    small = weights.Pretrained(*found["cifar_resnet"], recipe, tuple("abcdefghij"), source)
    weights.save_pretrained(folder / "cifar_resnet.safetensors", small)
    return folder, {name: variables for name, (_, variables) in found.items()}


def command(home, *options, model="cifar_resnet"):
    return [
        *("train", "finetune", "--model", model, "--pretrained", str(home / f"{model}.safetensors")),
        *("--data-dir", str(home / "set"), "--data.image-size", "32", "--batch-size", "9", "--epochs", "2"),
        *("--model-options", *(f"{name}={value}" for name, value in NETWORKS[model].items())),
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
    options = ("--freeze", "stem*", "--workdir", folder / "tuned")
    assert cli.main(command(folder, *options, model="resnet18")) == 0
    return folder / "tuned"


def test_a_run_killed_while_it_first_saved_begins_with_the_weights_again(home, tuned, tmp_path):
    folder, variables = home
    half = tmp_path / "half"
    shutil.copytree(tuned, half)
    (half / "summary.json").unlink()
    for path in (half / "checkpoints").iterdir():
        path.rename(path.with_name(f"{path.name}.orbax-checkpoint-tmp"))
    assert cli.main(command(folder, "--freeze", "stem*", "--workdir", half, model="resnet18")) == 0
    kernel = states(half)[-1]["params"]["stem_conv"]["kernel"]
    np.testing.assert_array_equal(kernel, variables["resnet18"]["params"]["stem_conv"]["kernel"])


def test_frozen_parameters_stay_to_the_bit_and_the_head_is_new(home, tuned):
    variables = home[1]["resnet18"]
    for state in states(tuned):
        moved = changed(variables["params"], state["params"] | {"head": variables["params"]["head"]})
        assert moved.pop("stem_conv") is False
        assert moved.pop("stem_norm") is False
        assert moved.pop("head") is False
        assert all(moved.values())
        assert state["params"]["head"]["kernel"].shape == (32, 3)
        assert changed(variables["batch_stats"], state["batch_stats"])["stem_norm"]  # as PyTorch's go on
    record = json.loads((tuned / "data.json").read_text())
    np.testing.assert_allclose(record["mean"], (0.485, 0.456, 0.406), rtol=1e-6)
    np.testing.assert_allclose(record["std"], (0.229, 0.224, 0.225), rtol=1e-6)


def test_a_new_head_has_ten_times_the_rate(home):
    """One step by plain SGD: the head moves by 0.01 times its gradient, the rest by 0.001 times."""
    folder, _ = home
    config = load(configs()["finetune"])
    optimizer = setup.make_optimizer(
        dataclasses.replace(freezing.frozen_optimizer(config), name="sgd"), lambda count: 0.001
    )
    params = jax.eval_shape(lambda: zoo.create("resnet18", width=4).init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params["params"])
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.01, rtol=1e-6)
    np.testing.assert_allclose(updates["stage4_first"]["branch"]["conv1"]["kernel"], -0.001, rtol=1e-6)


@pytest.fixture(scope="module")
def thawed(home):
    folder = home[0] / "thawed"
    options = ("--freeze", "stem*", "stage1*", "--thaw", 1, 2, "--freeze-moments", "--epochs", 3, "--workdir", folder)
    assert cli.main(command(home[0], *options)) == 0
    return folder


def test_thawed_groups_move_from_their_epoch_on_and_moments_can_be_kept(home, thawed):
    variables = home[1]["cifar_resnet"]
    first, second, third = states(thawed)
    for what in ("params", "batch_stats"):
        start = variables[what] | ({"head": first[what]["head"]} if what == "params" else {})
        groups = [f"{name}" for name in start if name.startswith(("stem", "stage1"))]
        assert {name: changed(start, first[what])[name] for name in groups} == dict.fromkeys(groups, False)
        moved = changed(start, second[what])
        assert {name: moved[name] for name in groups} == {name: name.startswith("stem") for name in groups}
        assert all(changed(start, third[what])[name] for name in groups)
    record = json.loads((thawed / "data.json").read_text())
    np.testing.assert_allclose(record["mean"], (0.5, 0.4, 0.3), rtol=1e-6)  # the weights' own


def test_linear_probing_freezes_all_but_the_head(home):
    folder, variables = home[0], home[1]["cifar_resnet"]
    options = ("--freeze", "*", "--epochs", 1, "--workdir", folder / "probe")
    assert cli.main(command(folder, *options)) == 0
    (state,) = states(folder / "probe")
    moved = changed(variables["params"], state["params"] | {"head": variables["params"]["head"]})
    assert not any(moved.values())


def test_a_run_goes_on_without_its_source_and_bit_identically(home):
    folder, _ = home
    path, workdir = folder / "copy.safetensors", folder / "stopped"
    shutil.copy(folder / "cifar_resnet.safetensors", path)
    options = ("--pretrained", path, "--freeze", "stem*", "--thaw", 1, "--workdir", workdir)
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
        exp = setup.setup(again, folder / f"again{keeps}")
        state = exp.initial_state(print)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), dict(state.params), dict(run.variables["params"]))
        assert same.pop("head") == {"kernel": keeps, "bias": keeps}
        assert jax.tree.all(same)
        np.testing.assert_array_equal(exp.statistics.standardizer.shift, run.standardizer.shift)
    other = dataclasses.replace(config, data=Data(name="digits"), data_dir="", reset_head=True)
    with pytest.raises(InputError, match="stem_conv"):
        setup.setup(other, folder / "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pretrained", "none.safetensors"], "none.safetensors does not exist"),
        (["--pretrained", "resnt18"], "did you mean 'resnet18"),
        (["--pretrained", "resnet50.tv2_in1k"], "is of the network resnet50, model is cifar_resnet"),
        (["--no-reset-head"], "(10,), but the network's have (3,)"),
        (
            ["--pretrained", "resnet18.safetensors", "--model", "resnet18", "--model-options", "width=8"],
            "(4,), but the network's have (8,)",
        ),
        (["--model", "resnet34", "--model-options", "width=4"], "is of the network cifar_resnet, model is resnet34"),
        (["--freeze", "stemm*"], "freeze (optimizer.groups) 'stemm*' matches no parameter"),
        (["--init", "lsuv"], "both set the initial parameters"),
        (["--data-dir", ""], "folder: needs --data-dir"),
        (["--data-dir", "nowhere"], "has no train/"),
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


def test_grey_runs_are_sources_too(tmp_path):
    """Their stem has one channel, which the network's usual input does not say."""
    config = Config(
        data=Data(name="digits"),
        model="cifar_resnet",
        model_options={"depth": 8, "width": 2},
        devices=Devices(count=1),
        epochs=1,
        batch_size=500,
        workdir=str(tmp_path / "digits"),
    )
    training.train(config)
    config = dataclasses.replace(config, pretrained=str(tmp_path / "digits"), freeze=("stem*",))
    exp = setup.setup(config, tmp_path / "again")
    stem = inference.load_run(tmp_path / "digits").variables["params"]["stem_conv"]["kernel"]
    np.testing.assert_array_equal(exp.initial_state(print).params["stem_conv"]["kernel"], stem)
    (tmp_path / "lost" / "checkpoints" / "3").mkdir(parents=True)  # Orbax takes it for none
    with pytest.raises(InputError, match="was not read, because the run has checkpoints"):
        setup.setup(config, tmp_path / "lost").initial_state(print)
    whole = dataclasses.replace(config, data=Data(name="digits", standardize="zca", epsilon=0.1))
    with pytest.raises(InputError, match=r"set data\.standardize channel"):
        setup.setup(whole, tmp_path / "again")
