"""CIFAR-10 with a linear classifier: the lecture's first perceptron, right in about 38 % of cases.

The lecture's experiment has five configs: cifar10_mlp_linear, _two_layer, _eight_layer_gaussian, _eight_layer_he and
_eight_layer_he_bn. The three of eight layers share optimizer, rate and number of epochs.
The images' channels are standardized, and nothing else is done to them.
Data: TFDS `cifar10`, or the original binary files in --data-dir.

    deepjax train cifar10_mlp_linear --data-dir FOLDER

Measured on two CPU cores, seed 0, on a JPEG-coded copy of the set (--data.name cifar10_jpeg):
59.5 % test error: right in 40.5 % of cases, 3 s of training.
"""

from deepjax.config import Config, Data, Optimizer, Schedule

config = Config(
    data=Data(name="cifar10", validation=0.1),
    model="mlp",
    model_options={"depth": 1},
    optimizer=Optimizer(name="momentum", learning_rate=0.001),
    schedule=Schedule(name="cosine"),
    epochs=8,
    batch_size=128,
    eval_batch_size=500,
    log_every=50,
)
