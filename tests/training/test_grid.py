"""The search over a grid: candidates trained together or alone, what is best, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

import helpers
from deepjax import cli, training
from deepjax.config import Augment, Config, Data, Devices, Optimizer, Schedule
from deepjax.errors import InputError
from deepjax.training import grid as grid_search

DIGITS = Config(
    model="mlp", model_options={"depth": 2, "width": 8}, optimizer=Optimizer("momentum", learning_rate=0.05),
    devices=Devices(count=1), epochs=2, batch_size=100, log_every=1, best="error",
)  # fmt: skip
RATES, DECAYS = [0.01, 0.1], [0.0, 0.01]
GRID = {"optimizer.learning_rate": RATES, "optimizer.weight_decay": DECAYS}
CASES = {
    "decoupled decay, clipping, two batches an update, cosine, averages, dropout, augmentation": {
        "optimizer": Optimizer("adamw", learning_rate=0.05, clip_norm=1.0, accumulate=2),
        "schedule": Schedule("cosine", warmup=0.5),
        "data": Data(augment=Augment(flip=True)),
        "model_options": {"depth": 3, "width": 8, "dropout": 0.1, "norm": "batch"},
        "ema": 0.9,
    },
    "convolutions": {"model": "mnist_cnn", "model_options": {"width": 2}, "data": Data(image_size=16)},
    "replicas": {"devices": Devices("pmap", count=2)},
}


def search(config, folder, grid=GRID, **options):
    with helpers.empty_figures():
        return training.search(dataclasses.replace(config, workdir=str(folder)), grid, **options)


@pytest.mark.parametrize(
    "changes", [{}, *(pytest.param(changes, marks=pytest.mark.slow, id=name) for name, changes in CASES.items())]
)
def test_candidates_trained_together_are_those_trained_alone(tmp_path, changes):
    config = dataclasses.replace(DIGITS, **changes)
    together, alone = (search(config, tmp_path, updates=6, together=count) for count in (3, 1))
    assert [one["options"] for one in together["candidates"]] == [
        {"optimizer.learning_rate": rate, "optimizer.weight_decay": decay} for rate in RATES for decay in DECAYS
    ]
    for one, other in zip(together["candidates"], alone["candidates"], strict=True):
        assert len(one["losses"]) == 6 * config.optimizer.accumulate
        np.testing.assert_allclose(one["losses"], other["losses"], rtol=2e-4)
        np.testing.assert_allclose(one["metrics"]["loss"], other["metrics"]["loss"], rtol=2e-4)
    assert len({one["losses"][-1] for one in together["candidates"]}) == 4
    for found in (together, alone):  # the two may differ if metrics differ by rounding only
        able = [one for one in found["candidates"] if one["above_chance"]]
        best = min(able, key=lambda one: (one["metrics"]["error"], one["metrics"]["loss"]))
        assert found["best"] == best["options"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The folder of a search by the command, with the run of the best candidate, and what was printed."""
    folder, printed = tmp_path_factory.mktemp("runs") / "best", []
    path = folder.parent / "mine.py"
    path.write_text(f'"""Mine."""\nfrom deepjax.config import *\nconfig = {DIGITS!r}\n')
    with pytest.MonkeyPatch.context() as patch, helpers.empty_figures():
        patch.setattr("builtins.print", lambda *words, **_: printed.extend(words))
        words = ["--optimizer.learning-rate=0.001,0.1,1e30", "--model-options", "width=4,8", "--updates", "13"]
        assert cli.main(["search", str(path), *words, "--workdir", str(folder)]) == 0
    return folder, printed


def test_the_best_is_trained_in_full_from_the_start_that_the_search_saw(searched):
    folder, printed = searched
    record = json.loads((folder / "search.json").read_text())
    assert (folder / "search.png").exists()
    results = {tuple(one["options"].values()): one for one in record["candidates"]}
    assert set(results) == {(rate, width) for rate in (0.001, 0.1, 1e30) for width in (4, 8)}
    fine = {key: one["metrics"]["error"] for key, one in results.items() if one["above_chance"]}
    best = min(fine, key=lambda key: fine[key])
    assert record["best"] == dict(zip(("optimizer.learning_rate", "model_options.width"), best, strict=True))
    assert best[0] == 0.1
    assert f"best: --optimizer.learning-rate 0.1 --model-options width={best[1]}" in printed
    assert results[1e30, 4]["result"].startswith("diverged at update ")
    assert results[1e30, 4]["metrics"] is None
    config = json.loads((folder / "config.json").read_text())["config"]
    assert (config["optimizer"]["learning_rate"], config["model_options"]["width"]) == best
    losses = [row["loss"] for row in helpers.records(folder, "train")]
    np.testing.assert_allclose(results[best]["losses"], losses[:13], rtol=1e-6)
    (first, _) = helpers.records(folder, "validation")
    np.testing.assert_allclose(results[best]["metrics"]["loss"], first["loss"], rtol=1e-6)


@pytest.mark.slow
def test_one_seed_gives_one_result_and_another_seed_another(searched, tmp_path):
    record = json.loads((searched[0] / "search.json").read_text())
    grid = {"optimizer.learning_rate": [0.001, 0.1, 1e30], "model_options.width": [4, 8]}
    assert search(DIGITS, tmp_path / "again", grid, updates=13) == record
    other = search(dataclasses.replace(DIGITS, seed=1), tmp_path / "other", grid, updates=13)
    assert other["candidates"] != record["candidates"]


def test_where_all_diverge_or_none_is_better_than_chance_one_line_says_so(tmp_path, capsys):
    small = dataclasses.replace(DIGITS, model_options={"depth": 4, "width": 8, "init": "gaussian", "scale": 1e-4})
    (tmp_path / "mine.py").write_text(f"from deepjax.config import *\nconfig = {small!r}\n")
    words = ["--optimizer.learning-rate", "1e-3,1e30", "--updates", "3", "--workdir", str(tmp_path / "run")]
    code = cli.main(["search", str(tmp_path / "mine.py"), *words])
    said = capsys.readouterr()
    assert (code, said.err) == (1, "")
    assert said.out.endswith("none of the 2 candidates is better than chance, 1 diverged; nothing is trained\n")
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"search.json", "search.png", "lock"}


@pytest.mark.parametrize(
    ("grid", "changes", "message"),
    [
        ({"optimizer.learning_rate": [0.1, -1.0]}, {}, "learning_rate -1.0 must be greater than 0"),
        ({"optimizer.learning_rat": [0.1]}, {}, "learning_rat is not a field of Optimizer; did you mean"),
        ({"model_options.widht": [4]}, {}, "widht"),
        ({"optimizer.learning_rate": []}, {}, "an option without values"),
        ({"optimizer.learning_rate": 0.1}, {}, "learning_rate 0.1 must be a list of values"),
        ({"model": "mlp"}, {}, "grid model 'mlp' must be a list of values"),
        ({"model.depth": [2]}, {}, "model.depth is not a field; model is a single value"),
        (GRID, {"data": Data(validation=0.0)}, "data.validation 0: a search compares"),
    ],
)
def test_bad_input_names_itself_and_leaves_nothing(tmp_path, grid, changes, message):
    with pytest.raises(InputError, match=message):
        search(dataclasses.replace(DIGITS, **changes), tmp_path / "run", grid)
    assert not (tmp_path / "run").exists()


def test_optimizers_that_fix_their_numbers_are_tried_alone():
    groups = {"head/*": {"learning_rate": 0.5}}
    alone = (Optimizer("rprop"), Optimizer("lbfgs", line_search=True), Optimizer("sgd", groups=groups))
    assert not any(map(grid_search._takes_numbers, alone))
    configs = [dataclasses.replace(DIGITS, optimizer=Optimizer(name)) for name in ("sgd", "sgd", "adam", "adam")]
    choices = [{"optimizer.name": config.optimizer.name, "optimizer.learning_rate": 0.1} for config in configs]
    assert grid_search._programs(configs, choices, together=16) == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optimizer.learning-rate", "0.1"], "needs an option with several values"),
        (["--optimizer.learning-rate", "0.1,x"], "could not convert"),
        (["--optimizer.lr", "0.1,1", "--seed", "1,2"], "did you mean --optimizer.learning-rate"),
        (["--workdir", "a,b"], "needs an option with several values"),
    ],
)
def test_the_command_refuses_what_is_no_list(words, message, capsys):
    assert cli.main(["search", "digits", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
