"""Adaline

TODO

    deepjax train adaline
    deepjax train adaline --init least_squares --batch-size 1297 --epochs 1
"""

from deepjax.config import Config, Data, Devices, Optimizer

config = Config(
    data=Data(name="digits"),
    loss="mse",
    model="mlp",
    model_options={"depth": 1, "init": "zeros"},
    optimizer=Optimizer(name="sgd", learning_rate=0.001),
    devices=Devices(count=1),
    epochs=10,
    batch_size=1,
    eval_batch_size=100,
    best="error",
)
