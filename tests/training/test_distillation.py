"""Distillation: the loss, what the teacher sees, what is refused, and a run with a teacher."""

import dataclasses
import shutil

import chex
import jax
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

import helpers
from deepjax import data, zoo
from deepjax.config import Augment, Config, Data, Devices, Optimizer, Schedule
from deepjax.errors import InputError, Stopped
from deepjax.runs.workdir import Statistics
from deepjax.tasks import Classification, classification
from deepjax.tasks.classification import Taught
from deepjax.training import distillation

KEY = jax.random.key(0)


@pytest.mark.parametrize("weights", [(), (0.5, 1.0, 2.5)])
def test_the_loss_is_hinton_et_als(weights):
    """(1 - share) CE(labels, p) + share T^2 KL(teacher^T || p^T), in float64 NumPy; for mixed labels and all heads."""
    rng = np.random.default_rng(0)
    logits, teacher, other = (rng.normal(0, 2, (12, 3)) for _ in range(3))
    labels, mask = rng.dirichlet([1, 1, 1], 12), rng.random(12) < 0.7
    task = Classification(tuple("abc"), auxiliary_weight=0.3, class_weights=weights)
    task = task.with_teacher(lambda *_: None, 3.0, 0.8)
    p, q = softmax(teacher / 3, -1), log_softmax(logits / 3, -1)
    hard = -(labels * (log_softmax(logits, -1) + 0.3 * log_softmax(other, -1))).sum(-1)
    each = 0.2 * hard + 0.8 * 9 * (p * (np.log(p) - q)).sum(-1)
    each *= labels @ np.array(weights) if weights else 1
    single = [x.astype(np.float32) for x in (logits, other, labels, teacher)]
    sums = task.measure(tuple(single[:2]), Taught(*single[2:]), mask)
    np.testing.assert_allclose(sums["loss"], each[mask].sum(), rtol=1e-5)
    assert float(sums["error"]) == (logits.argmax(-1) != labels.argmax(-1))[mask].sum()


def gray_images(count=40, classes=3):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 6, 6, 1)).astype(np.uint8)
    labels = (np.arange(count) % classes).astype(np.int32)
    split = data.Arrays(images, labels)
    return data.Dataset("gray", tuple("abc"), (6, 6, 1), split, split.take(np.arange(0)), split)


def standardizer(mean, std):
    return data.Standardizer("channel", np.float32([mean]), np.float32([std]))


def teacher_of(dataset, **changes):
    model = zoo.create("mlp", depth=1, width=4, num_classes=3)
    variables = helpers.draw_variables(model, np.zeros((1, 6, 6, 1), np.float32))
    made = distillation.Teacher("runs/it", model, variables, standardizer(0.1, 2.0), tuple("abc"), 3)
    return made._replace(**changes)


def test_the_teacher_sees_the_same_images_in_its_own_standardization():
    dataset, augment = gray_images(), Augment(flip=True, brightness=0.3, mixup=0.5)
    config = Config(data=Data(augment=augment), teacher="runs/it", temperature=2.0)
    statistics, teacher = Statistics(standardizer(0.5, 0.25)), teacher_of(dataset)
    task = classification.of_config(config, dataset, statistics, None)
    task = distillation.taught(task, teacher, config, dataset, statistics)
    batch = {"image": dataset.train.images[:8], "label": dataset.train.labels[:8], "mask": np.arange(8) < 7}

    @jax.jit
    def run(batch, variables):
        inputs, targets = task.prepare(batch | {"teacher": variables}, KEY)
        seen = (0.25 * inputs + 0.5 - 0.1) / 2.0  # pixels are 0.25 x + 0.5
        return targets, teacher.model.apply(variables, seen, train=False)

    targets, logits = run(batch, teacher.variables)
    np.testing.assert_allclose(targets.logits, logits, rtol=1e-4, atol=1e-5)
    assert targets.hard.shape == (8, 3)
    _, labels = task.prepare(batch)  # in evaluation there is no teacher
    assert labels is batch["label"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 4, "classes": None}, "teacher runs/it has 4 classes, gray has 3"),
        ({"classes": ("a", "c", "b")}, "teacher runs/it: its class 1 is 'c', that of gray is 'b'"),
        ({"variables": {"params": {}}}, "teacher runs/it: "),
    ],
)
def test_a_teacher_of_something_else_is_refused(changes, message):
    dataset, config, statistics = gray_images(), Config(teacher="runs/it"), Statistics(standardizer(0, 1))
    task = classification.of_config(config, dataset, statistics, None)
    with pytest.raises(InputError, match=message):
        distillation.taught(task, teacher_of(dataset, **changes), config, dataset, statistics)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 2.0}, "temperature 2.0 does nothing without teacher"),
        ({"teacher_share": 0.5}, "teacher_share 0.5 does nothing without teacher"),
        ({"teacher": "x", "task": "other"}, "teacher x needs task classification"),
    ],
)
def test_fields_that_do_nothing_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        distillation.check(dataclasses.replace(Config(), **fields))


def test_what_is_no_teacher_is_refused(tmp_path):
    for where, message in (
        ("runs/nothing", "runs/nothing: no folder of a run"),
        ("resnt18", "resnt18 is no folder of a run, .*did you mean"),
        (str(tmp_path), "config.json"),
    ):
        with pytest.raises(InputError, match=message):
            distillation.read(where)


TINY = Config(
    model="mlp",
    model_options={"depth": 1, "width": 8},
    optimizer=Optimizer("adam", learning_rate=0.02),
    devices=Devices(count=1),
    epochs=2,
    batch_size=50,
    log_every=1,
)


@pytest.mark.parametrize("strategy", ["jit", pytest.param("pmap", marks=pytest.mark.slow)])
def test_a_run_with_a_teacher_resumes_to_the_same_bits(tmp_path, monkeypatch, strategy):
    arrays = four_features()
    teacher = tmp_path / "teacher"
    helpers.train(TINY, teacher, arrays=arrays)
    changes = {"teacher": str(teacher), "devices": Devices(strategy, 2), "seed": 1}
    helpers.train(TINY, tmp_path / "whole", arrays=arrays, **changes)
    with monkeypatch.context() as patch:
        helpers.stop_after(patch, 3)
        with pytest.raises(Stopped):
            helpers.train(TINY, tmp_path / "parts", arrays=arrays, **changes)
    helpers.train(TINY, tmp_path / "parts", arrays=arrays, **changes)
    chex.assert_trees_all_equal(helpers.newest_state(tmp_path / "parts"), helpers.newest_state(tmp_path / "whole"))
    assert helpers.records(tmp_path / "parts") == helpers.records(tmp_path / "whole")
    shutil.rmtree(teacher)  # a finished run needs its teacher no more
    helpers.train(TINY, tmp_path / "whole", arrays=arrays, **changes)
    alone = helpers.train(TINY, tmp_path / "alone", arrays=arrays, seed=1)
    assert alone["train_loss"] != helpers.records(tmp_path / "whole", "train_epoch")[-1]["loss"]


def four_features(count=100):
    rng = np.random.default_rng(0)
    y = np.arange(count) % 3
    x = rng.normal(size=(count, 4)).astype(np.float32) + np.eye(3, 4, dtype=np.float32)[y]
    return {"x_train": x, "y_train": y, "x_test": x[:20], "y_test": y[:20]}


@pytest.mark.slow
def test_a_teacher_helps_a_small_student_that_has_few_images(tmp_path):
    """Digits, 10 images of each class, means over six seeds; the teacher has seen all images.

    With all images, a student of 6 features was no better with this teacher than without one.
    """
    digits = data.load(Data(name="digits"), "", 0)
    common = dataclasses.replace(
        TINY, optimizer=Optimizer("adamw", learning_rate=0.01, weight_decay=0.01), schedule=Schedule("cosine")
    )
    augment = Data(augment=Augment(translate=1.0, scale=0.1))
    teacher = {"model_options": {"depth": 3, "width": 128, "dropout": 0.3}, "epochs": 10, "data": augment}
    helpers.train(common, tmp_path / "teacher", arrays=digits, **teacher)
    errors = {"": [], str(tmp_path / "teacher"): []}
    for seed in range(6):
        rng = np.random.default_rng(seed)
        few = [rng.permutation(np.flatnonzero(digits.train.labels == label))[:10] for label in range(10)]
        split = digits.train.take(np.tile(np.concatenate(few), 20))  # an epoch is 20 passes
        arrays = dataclasses.replace(digits, name="few", train=split)
        for name, found in errors.items():
            student = {"model_options": {"depth": 1, "width": 16}, "epochs": 5, "batch_size": 20, "teacher": name}
            summary = helpers.train(common, tmp_path / f"{seed}{bool(name)}", arrays=arrays, seed=seed, **student)
            found.append(summary["test_error"])
    alone, taught = (np.mean(found) for found in errors.values())
    assert taught < alone - 0.01, errors
