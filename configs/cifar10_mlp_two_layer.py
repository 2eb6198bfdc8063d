"""CIFAR-10 with a perceptron of two layers, the lecture's second.

Expected result: 47.3 % test error (52.7 % correct; the lecture: about 51 %) after 4 s of training on two CPU cores
(seed 0, a JPEG-coded copy of the data set: --data.name cifar10_jpeg).

The hidden layer has 128 ReLU units.

The lecture's experiment has five configs: cifar10_mlp_linear, _two_layer, _eight_layer_gaussian, _eight_layer_he and
_eight_layer_he_bn. Those with eight layers have the same optimizer, learning rate and number of epochs.

Data: TFDS `cifar10`, or the original binary files in --data-dir.

    deepjax train cifar10_mlp_two_layer --data-dir FOLDER
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
