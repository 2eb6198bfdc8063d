"""Ridge regression

deepjax train ridge_regression
deepjax train ridge_regression --init least_squares --batch-size 300 --epochs 1
"""

from deepjax.config import Config, Data, Devices, Optimizer

config = Config(
    data=Data(name="diabetes", standardize="z_score"),
    task="regression",
    model="mlp",
    model_options={"depth": 1, "init": "zeros"},
    optimizer=Optimizer(name="sgd", learning_rate=0.01, weight_decay=1.0),
    devices=Devices(count=1),
    epochs=50,
    batch_size=10,
    eval_batch_size=100,
)
