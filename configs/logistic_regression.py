"""Logistic regression on two moons: a line between two classes.

Expected result: 13.50 % test error (--seed 0 to 4; 200 test points), in about 4 s of training on two CPU cores that
were shared with other work. scikit-learn's LogisticRegression(C=1000) has the same. No line separates the moons;
see `kernel_perceptron` and `rbf_network`.

The network has one output for each class. The softmax of two outputs is the sigmoid of their difference, whose
weights are those of the lecture.

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
