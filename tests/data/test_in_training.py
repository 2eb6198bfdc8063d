"""Standardization, augmentation and mixing in a run: what is fitted is kept, and resuming gives the same numbers."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import helpers
from deepjax import data, inference, training
from deepjax.config import Augment, Config, Data, Devices, Optimizer
from deepjax.plan.inputs import find
from deepjax.plan.step import make
from deepjax.runs.checkpoint import Checkpoints

COLORS = Augment(lighting=0.1, hue=0.1, contrast=0.2, randaugment=1, magnitude=5, mixup=0.2)
KINDS = {
    "zca": Data(standardize="zca", epsilon=0.01, augment=dataclasses.replace(COLORS, crop=1, cutout=2, cutmix=1.0)),
    "pca": Data(standardize="pca", epsilon=0.01, augment=COLORS),
}
CONFIG = Config(
    model="mlp",
    model_options={"width": 16},
    optimizer=Optimizer(name="adam", learning_rate=0.003),
    devices=Devices(count=1),
    epochs=2,
    batch_size=40,
    label_smoothing=0.1,
    log_every=1,
    checkpoint_every=2,
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_keeps_what_was_fitted_and_resumes_with_the_same_numbers(tmp_path, kind, monkeypatch):
    """Three classes of noise around different colors, in an .npz file; as if killed before the last checkpoint."""
    rng = np.random.default_rng(0)
    labels = np.arange(150) % 3
    images = np.clip(rng.integers(0, 200, (150, 4, 4, 3)) + 55 * np.eye(3, dtype=int)[labels][:, None, None], 0, 255)
    images = images.astype(np.uint8)
    np.savez(tmp_path / "set.npz", x_train=images[:120], y_train=labels[:120], x_test=images[120:], y_test=labels[120:])
    fields, folder = dataclasses.replace(KINDS[kind], name=str(tmp_path / "set.npz")), tmp_path / "run"
    config = dataclasses.replace(CONFIG, data=fields, workdir=str(folder))

    summary, whole = training.train(config), helpers.newest_state(folder)
    record = json.loads((folder / "data.json").read_text())
    assert "mean" not in record
    train_split = data.load(fields, "", 0).train
    np.testing.assert_array_equal(np.float32(record["lighting"]), data.lighting_components(train_split))
    evaluated = inference.evaluate_run(inference.load_run(folder))
    assert evaluated.error == summary["test_error"]
    np.testing.assert_allclose(evaluated.loss, summary["test_loss"], rtol=1e-5)

    manager = Checkpoints(folder / "checkpoints")
    manager.manager.delete(manager.steps[-1])
    manager.close()
    (folder / "summary.json").unlink()
    monkeypatch.setattr(data.Standardizer, "fit", None)  # a resumed run reads what was fitted
    again = training.train(config)
    jax.tree.map(np.testing.assert_array_equal, helpers.newest_state(folder), whole)
    assert again["test_loss"] == summary["test_loss"]


def test_turned_images_and_their_centers_are_the_same_from_device_and_host(tmp_path):
    """The network gets 6x6 pixels of 8x8 in training, evaluation and plan, wherever the images are."""
    fields = Data(name="digits", center_crop=6, augment=Augment(rotate=20.0, scale=0.1))
    summaries = []
    for placement in ("device", "host"):
        placed = dataclasses.replace(fields, placement=placement)
        config = dataclasses.replace(CONFIG, data=placed, epochs=1, batch_size=400, checkpoint_every=9)
        summaries.append(helpers.train(config, tmp_path / placement))
    assert summaries[0]["test_loss"] == summaries[1]["test_loss"]
    run = inference.load_run(tmp_path / "host")
    assert run.shape == (8, 8, 1)
    assert 36 in [leaf.shape[0] for leaf in jax.tree.leaves(run.variables["params"])]
    np.testing.assert_allclose(inference.evaluate_run(run).loss, summaries[0]["test_loss"], rtol=1e-5)
    assert make(run.config, find(run.config), run.model).shape == (6, 6, 1)
