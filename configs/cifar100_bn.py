"""CIFAR-100 with the lecture's network of 1x3 and 3x1 convolutions and batch normalization.

Expected result: not measured. On two CPU cores an epoch takes minutes; the lecture's GPU took 17 seconds for one, and
42 minutes for the run. Tests hold the network against the lecture's table, and train a small one of its kind.

The config is cifar100_base with batch normalization after every convolution, before its ReLU.

Batches of 32, SGD with momentum 0.9, a learning rate of 0.01 halved every 50 epochs, a fifth of the training images for
validation. The lecture gives the time of the run and of an epoch, which makes 150 epochs. Early stopping: the network
that is tested is the best on the validation images, and a run ends after 50 epochs without a lower validation loss,
which is long enough for the rate to be halved once. The initial weights are He's, because the lecture gives none. Data:
TFDS `cifar100`, or the original binary files in --data-dir.

    deepjax train cifar100_bn --data-dir FOLDER
"""

from deepjax.config import Config, Data, Optimizer, Schedule

config = Config(
    data=Data(name="cifar100", validation=0.2),
    model="cifar_asymmetric",
    model_options={"norm": "batch"},
    optimizer=Optimizer(name="momentum", learning_rate=0.01, momentum=0.9),
    schedule=Schedule(name="step", period=50.0, factor=0.5),
    epochs=150,
    batch_size=32,
    eval_batch_size=500,
    patience=50,
    log_every=100,
)
