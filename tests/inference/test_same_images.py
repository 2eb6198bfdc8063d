"""Which images an evaluation of runs on a folder tests on."""

import numpy as np
import pytest

import helpers
from deepjax import data, inference
from deepjax.config import Config, Data, Devices
from deepjax.errors import InputError

CONFIG = Config(
    data=Data("folder", image_size=8),
    model="mlp",
    model_options={"depth": 1, "width": 4},
    devices=Devices(count=1),
    epochs=1,
    batch_size=8,
)


def test_runs_of_a_folder_share_the_test_images_until_it_changes(tmp_path):
    helpers.write_images(tmp_path / "set", {"a": 20, "b": 20})
    runs = []
    for seed in (0, 1):
        helpers.train(CONFIG, tmp_path / str(seed), data_dir=str(tmp_path / "set"), seed=seed)
        runs.append(inference.load_run(tmp_path / str(seed)))
    found = inference.evaluate_runs(runs)
    assert len(found.together.labels) == 8
    with pytest.raises(InputError, match="split validation of .* differs"):
        inference.evaluate_runs(runs, split="validation")
    helpers.write_images(tmp_path / "set", {"a": 21, "b": 20})
    with pytest.raises(InputError, match="some of its training examples would be drawn for testing"):
        inference.evaluate_run(runs[0])


def test_images_in_other_files_are_other_images(tmp_path):
    helpers.write_images(tmp_path, {"a": 20, "b": 20})
    one, other = (helpers.load_data(f"{tmp_path}/", image_size=8, placement="host", test_seed=seed) for seed in (0, 1))
    assert isinstance(one.test, data.Records)
    np.testing.assert_array_equal(one.test.indices, other.test.indices)
    assert not inference.evaluate._same(one.test, other.test)
    assert inference.evaluate._same(one.test, one.test)
