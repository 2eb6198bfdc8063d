"""CIFAR-10 with eight layers that start from small Gaussian weights: nothing works.

The lecture's experiment has five configs: cifar10_mlp_linear, _two_layer, _eight_layer_gaussian, _eight_layer_he and
_eight_layer_he_bn. The three of eight layers share optimizer, rate and number of epochs.
With standard deviation 0.01 and 128 features, each layer shrinks the signal to 0.01 sqrt(128 / 2) = 0.08 of it, and the
gradient on its way back too.
Data: TFDS `cifar10`, or the original binary files in --data-dir.

    deepjax train cifar10_mlp_eight_layer_gaussian --data-dir FOLDER

Measured on two CPU cores, seed 0, on a JPEG-coded copy of the set (--data.name cifar10_jpeg):
90.0 % test error, loss 2.3026: chance. 6 s of training.
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
