"""CIFAR-10 with a linear classifier, the lecture's first perceptron.

Expected result: 59.5 % test error (40.5 % correct; the lecture: about 38 %) after 3 s of training on two CPU cores
(seed 0, a JPEG-coded copy of the data set: --data.name cifar10_jpeg).

The channels of the images are standardized. There is no other preprocessing.

The lecture's experiment has five configs: cifar10_mlp_linear, _two_layer, _eight_layer_gaussian, _eight_layer_he and
_eight_layer_he_bn. Those with eight layers have the same optimizer, learning rate and number of epochs.

Data: TFDS `cifar10`, or the original binary files in --data-dir.

    deepjax train cifar10_mlp_linear --data-dir FOLDER
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
