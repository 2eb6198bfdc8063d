"""CIFAR-10 with eight layers and small Gaussian initial weights, with which the network does not learn.

Expected result: 90.0 % test error and a loss of 2.3026, which is chance, after 6 s of training on two CPU cores (seed
0, a JPEG-coded copy of the data set: --data.name cifar10_jpeg).

With standard deviation 0.01 and 128 features, each layer multiplies the signal by 0.01 sqrt(128 / 2) = 0.08, and the
gradient too.

The lecture's experiment has five configs: cifar10_mlp_linear, _two_layer, _eight_layer_gaussian, _eight_layer_he and
_eight_layer_he_bn. Those with eight layers have the same optimizer, learning rate and number of epochs.

Data: TFDS `cifar10`, or the original binary files in --data-dir.

    deepjax train cifar10_mlp_eight_layer_gaussian --data-dir FOLDER
"""

from deepjax.config import Config, Data, Optimizer, Schedule

config = Config(
    data=Data(name="cifar10", validation=0.1),
    model="mlp",
    model_options={"depth": 8, "width": 128, "init": "gaussian"},
    optimizer=Optimizer(name="momentum", learning_rate=0.05),
    schedule=Schedule(name="cosine"),
    epochs=8,
    batch_size=128,
    eval_batch_size=500,
    log_every=50,
)
