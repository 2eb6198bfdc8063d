"""Adaline (Widrow & Hoff 1962) for ten digits: squared error of linear outputs, 1 for the class and -1 for the others.

Expected result: test error 5.33 to 7.33 %, 6.47 % on average (--seed 0 to 4; one of the 300 test images is 0.33 %),
in about 20 s of training on two CPU cores that were shared with other work. The closed form, by the second command,
has 5.00 %, as scikit-learn's RidgeClassifier without a penalty.

One example at a time, w + 2 rate (y - w^T x) x for each class: mse has no factor 1/2, so the learning rate is half
of the lecture's. In the second command, the whole training set is one batch, so that training stays at the closed
form.

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
