"""CIFAR-10 with eight layers, He's weights and batch normalization: it learns faster, and more.

The lecture's experiment has five configs: cifar10_mlp_linear, _two_layer, _eight_layer_gaussian, _eight_layer_he and
_eight_layer_he_bn. The three of eight layers share optimizer, rate and number of epochs.
Compare with cifar10_mlp_eight_layer_he.
Data: TFDS `cifar10`, or the original binary files in --data-dir.

    deepjax train cifar10_mlp_eight_layer_he_bn --data-dir FOLDER

Measured on two CPU cores, seed 0, on a JPEG-coded copy of the set (--data.name cifar10_jpeg):
47.6 % test error, 7 s of training.
"""

from deepjax.config import Config, Data, Optimizer, Schedule

config = Config(
    data=Data(name="cifar10", validation=0.1),
    model="mlp",
    model_options={"depth": 8, "width": 128, "init": "he", "norm": "batch"},
    optimizer=Optimizer(name="momentum", learning_rate=0.05),
    schedule=Schedule(name="cosine"),
    epochs=8,
    batch_size=128,
    eval_batch_size=500,
    log_every=50,
)
