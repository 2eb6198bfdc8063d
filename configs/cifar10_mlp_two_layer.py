"""CIFAR-10 with a perceptron of two layers, the lecture's second, right in about 51 % of cases.

The lecture's experiment has five configs: cifar10_mlp_linear, _two_layer, _eight_layer_gaussian, _eight_layer_he and
_eight_layer_he_bn. The three of eight layers share optimizer, rate and number of epochs.
The hidden layer has 128 ReLU units.
Data: TFDS `cifar10`, or the original binary files in --data-dir.

    deepjax train cifar10_mlp_two_layer --data-dir FOLDER

Measured on two CPU cores, seed 0, on a JPEG-coded copy of the set (--data.name cifar10_jpeg):
47.3 % test error: right in 52.7 % of cases, 4 s of training.
"""

from deepjax.config import Config, Data, Optimizer, Schedule

config = Config(
    data=Data(name="cifar10", validation=0.1),
    model="mlp",
    model_options={"depth": 2, "width": 128},
    optimizer=Optimizer(name="momentum", learning_rate=0.01),
    schedule=Schedule(name="cosine"),
    epochs=8,
    batch_size=128,
    eval_batch_size=500,
    log_every=50,
)
