"""The perceptron of Rosenblatt 1958, for the ten digits: one weight vector a class, one example at a time.

TODO

    deepjax train perceptron
"""

from deepjax.config import Config, Data, Devices, Optimizer

config = Config(
    data=Data(name="digits"),
    loss="perceptron",
    model="mlp",
    model_options={"depth": 1, "init": "zeros"},
    optimizer=Optimizer(name="sgd", learning_rate=1.0),
    devices=Devices(count=1),
    epochs=10,
    batch_size=1,
    eval_batch_size=100,
    best="error",
)
