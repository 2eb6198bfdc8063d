"""Ridge regression: linear regression with an L2 penalty, by stochastic gradient descent and in closed form.

Expected result: R2 0.362 to 0.366, 0.364 on average, on the 89 test patients of diabetes (--seed 0 to 4). The
closed form, by the second command, has 0.3684, as scikit-learn's Ridge(alpha=150). Without a penalty it is 0.3414
(config `linear_regression`).

The loss is the mean squared error plus weight_decay / 2 times the squared weights without the bias. In the
lecture's sum over N examples, that is alpha = N / 2 weight_decay, with N = 300. All else is as in
`linear_regression`.

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
