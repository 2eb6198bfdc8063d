"""CIFAR-100 with the lecture's network of 1x3 and 3x1 convolutions and regularization.

Expected result: not measured. On two CPU cores an epoch takes minutes; the lecture's GPU took 17 seconds for one, and
42 minutes for the run. Tests hold the network against the lecture's table, and train a small one of its kind.

The config is cifar100_base with L2 regularization 0.0025 of kernels, dropout 0.5 before the last layer, and label
smoothing 0.1. The lecture does not say whether batch normalization and augmentation stay; --model-options norm=batch
and --data.augment.flip, .translate 5 and .scale 0.2 add them. The lecture defines its L2 penalty as
alpha / 2 * sum(w^2), whose gradient is alpha w; this is weight decay 0.0025. It does not say where it drops; the
network has one dense layer, and elsewhere the lecture drops the inputs of dense layers.

Batches of 32, SGD with momentum 0.9, a learning rate of 0.01 halved every 50 epochs, a fifth of the training images for
validation. The lecture gives the time of the run and of an epoch, which makes 150 epochs. Early stopping: the network
that is tested is the best on the validation images, and a run ends after 50 epochs without a lower validation loss,
which is long enough for the rate to be halved once. The initial weights are He's, because the lecture gives none. Data:
TFDS `cifar100`, or the original binary files in --data-dir.

    deepjax train cifar100_regularized --data-dir FOLDER
"""

from deepjax.config import Config, Data, Optimizer, Schedule

config = Config(
    data=Data(name="cifar100", validation=0.2),
    model="cifar_asymmetric",
    model_options={"dropout": 0.5},
    optimizer=Optimizer(name="momentum", learning_rate=0.01, momentum=0.9, weight_decay=0.0025),
    schedule=Schedule(name="step", period=50.0, factor=0.5),
    epochs=150,
    batch_size=32,
    eval_batch_size=500,
    patience=50,
    label_smoothing=0.1,
    log_every=100,
)
