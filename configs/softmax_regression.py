"""Softmax regression

deepjax train softmax_regression
"""

from deepjax.config import Config, Data, Optimizer

config = Config(
    data=Data(name="digits"),
    model="mlp",
    model_options={"depth": 1, "init": "zeros"},
    optimizer=Optimizer(name="sgd", learning_rate=0.1),
    epochs=30,
    batch_size=32,
    eval_batch_size=100,
)
