"""The lecture's deep perceptron on the disc: naive Gaussian initial weights, with and without batch normalization.

Expected result: 2.50 % test error (seed 0; 200 test points), in under 20 s of training on two CPU cores that were
shared with other work.

The network has 2 inputs, 1 + 16 hidden layers of 32 ReLU units and 2 outputs. Every parameter, biases and those of the
batch norms included, is drawn with one standard deviation, as in the lecture. SGD has a learning rate of 0.1. The
lecture gives neither the size of the batches nor the number of epochs; this config has 100 of both.

    deepjax train disc
    deepjax train disc --model-options norm=none scale=0.1

Test error in %, seed 0; where it says "stops", the loss is no number after two or four updates:

    scale       0.1    0.25   0.3    1.0
    batch       3.00          2.50   1.00
    none       51.00   2.50   stops  stops
"""

from deepjax.config import Config, Data, Optimizer

config = Config(
    data=Data(name="disc"),
    model="mlp",
    model_options={"depth": 18, "width": 32, "init": "gaussian_all", "scale": 0.3, "norm": "batch"},
    optimizer=Optimizer(name="sgd", learning_rate=0.1),
    epochs=100,
    batch_size=100,
)
