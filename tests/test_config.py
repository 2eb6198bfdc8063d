"""Configs: types, ranges and choices, held by one reader; and the way through JSON."""

import dataclasses
import json
import math
import runpy
import subprocess
import sys

import pytest

from deepjax.cli.configs import configs
from deepjax.config import Augment, Config, Data, Devices, Optimizer, Schedule, check, flatten, from_dict, is_free
from deepjax.errors import InputError
from deepjax.fields import Range, option

NAN, INF = math.nan, math.inf

WRONG = (  # a config, and the one line that refuses it
    (Config(epochs=0), "epochs 0 must be at least 1"),
    (Config(epochs="3"), "epochs '3' must be an integer"),
    (Config(epochs=3.0), "epochs 3.0 must be an integer"),
    (Config(epochs=True), "epochs True must be an integer"),
    (Config(ema=1.0), "ema 1.0 must be in [0, 1)"),
    (Config(ema=NAN), "ema nan must be finite"),
    (Config(label_smoothing=1.5), "label_smoothing 1.5 must be in [0, 1]"),
    (Config(seed=2**32), f"seed {2**32} must be in [0, {2**32})"),
    (Config(reset_head=1), "reset_head 1 must be true or false"),
    (Config(thaw=(1.0, 0.0)), "thaw (1.0, 0.0) must be greater than 0"),
    (Config(thaw=2.0), "thaw 2.0 must be a tuple of any number of values, each a number"),
    (Config(freeze=("a", 1)), "freeze ('a', 1) must be a tuple of any number of values, each text"),
    (Config(dtype="float16"), "dtype 'float16' is unknown; did you mean 'bfloat16'?"),
    (Config(dtype=None), "dtype None must be one of float32, bfloat16"),
    (Config(model_options={"depth": [1]}), "model_options.depth [1] must be an integer or a number"),
    (Config(model_options={"rate": INF}), "model_options.rate inf must be finite"),
    (Config(model_options={1: 2}), "model_options {1: 2} must be names with values"),
    (Config(optimizer="adam"), "optimizer 'adam' must be of type Optimizer"),
    (Config(optimizer=Optimizer(learning_rate=INF)), "optimizer.learning_rate inf must be finite"),
    (Config(optimizer=Optimizer(learning_rate=0)), "optimizer.learning_rate 0 must be greater than 0"),
    (Config(optimizer=Optimizer(clip_norm="1")), "optimizer.clip_norm '1' must be a number or unset (None)"),
    (Config(optimizer=Optimizer(groups={"*": {"learning_rate": NAN}})), "optimizer.groups.*.learning_rate nan must be"),
    (Config(optimizer=Optimizer(slow_rate=0.0)), "optimizer.slow_rate 0.0 must be in (0, 1]"),
    (Config(schedule=Schedule(name=1)), "schedule.name 1 must be text"),
    (Config(schedule=Schedule(momentum=(0.9,))), "schedule.momentum (0.9,) must be a tuple of 2 values, each a number"),
    (Config(devices=Devices(count=-1)), "devices.count -1 must be at least 0"),
    (Config(data=Data(validation=1.0)), "data.validation 1.0 must be in [0, 1)"),
    (Config(data=Data(limits=(0.0, INF))), "data.limits (0.0, inf) must be finite"),
    (Config(data=Data(augment=Augment(hue=0.6))), "data.augment.hue 0.6 must be in [0, 0.5]"),
    (Config(data=Data(augment=Augment(area=(0.0, 1.0)))), "data.augment.area (0.0, 1.0) must be in (0, 1]"),
)


@pytest.mark.parametrize(("config", "message"), WRONG)
def test_a_wrong_value_is_one_line_that_names_it_also_in_a_record(config, message):
    with pytest.raises(InputError) as refused:
        check(config)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
    if all(isinstance(name, str) for name in config.model_options) and isinstance(config.optimizer, Optimizer):
        with pytest.raises(InputError) as refused:
            from_dict(Config, json.loads(json.dumps(dataclasses.asdict(config))))
        assert str(refused.value).startswith(message)


def test_every_default_is_allowed_and_an_integer_is_a_number():
    check(Config())
    check(Config(ema=0, thaw=(1, 2.5), data=Data(mean=(0, 1), std=(1, 1))))
    check(Config(model_options={"a": 1, "b": 0.5, "c": True, "d": "x", "e": None}))


def test_ranges():
    for limits, inside, outside, text in (
        (Range(at_least=1), (1, 9), (0.5,), "at least 1"),
        (Range(above=0), (0.1,), (0, -1), "greater than 0"),
        (Range(at_most=1), (1,), (1.5,), "at most 1"),
        (Range(below=1), (0,), (1,), "less than 1"),
        (Range(at_least=0, below=1), (0, 0.9), (1, -0.1), "in [0, 1)"),
        (Range(above=0, at_most=1), (1,), (0, 1.1), "in (0, 1]"),
    ):
        assert all(x in limits for x in inside)
        assert not any(x in limits for x in outside)
        assert str(limits) == text


def test_an_inline_field_is_not_named():
    @dataclasses.dataclass(frozen=True)
    class Options:
        config: Config = option(Config(), inline=True)
        steps: int = option(10, at_least=1)

    with pytest.raises(InputError, match=r"^epochs 0 must"):
        check(Options(Config(epochs=0)))
    with pytest.raises(InputError, match=r"^steps 0 must"):
        check(Options(steps=0))


def test_records():
    with pytest.raises(InputError, match=r"epoch is not a field of Config; did you mean 'epochs'"):
        from_dict(Config, {"epoch": 3})
    with pytest.raises(InputError, match=r"data\.augment\.flp is not a field of Augment; did you mean 'flip'"):
        from_dict(Config, {"data": {"augment": {"flp": True}}})
    for wrong in ({"data": 3}, [1], None):
        with pytest.raises(InputError, match="must be an object"):
            from_dict(Config, wrong)
    assert from_dict(Config, {"data": {"name": "xor"}}) == Config(data=Data(name="xor"))  # the rest by default
    assert flatten({"a": {"b": 1}, "c": 2}) == {"a.b": 1, "c": 2}


def test_free_fields():
    free = {path for path in flatten(dataclasses.asdict(Config())) if is_free(Config, path)}
    assert free == {
        "workdir", "data_dir", "keep", "checkpoint_every", "log_every", "eval_batch_size", "data.workers",
        "data.placement", "wandb", "profile", "steps_per_call", "watch",
    }  # fmt: skip
    assert not is_free(Config, "model_options.depth")
    assert not is_free(Config, "optimizer.groups.head/*.learning_rate")


def test_the_configs_of_the_package_are_allowed_survive_json_and_do_not_import_jax():
    for path in configs().values():
        config = runpy.run_path(str(path))["config"]
        check(config)
        assert from_dict(Config, json.loads(json.dumps(dataclasses.asdict(config)))) == config
    script = "import runpy, sys; [runpy.run_path(path) for path in sys.argv[1:]]; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script, *map(str, configs().values())]).returncode == 0
