"""Logistic regression

deepjax train logistic_regression
"""

from deepjax.config import Config, Data, Devices, Optimizer

config = Config(
    data=Data(name="moons"),
    model="mlp",
    model_options={"depth": 1, "init": "zeros"},
    optimizer=Optimizer(name="sgd", learning_rate=0.1),
    devices=Devices(count=1),
    epochs=20,
    batch_size=10,
    eval_batch_size=100,
)
