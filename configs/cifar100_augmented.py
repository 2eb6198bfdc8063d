"""CIFAR-100 with the lecture's network "1x3-3x1", batch normalization and augmentation.

Expected result: not measured. It was not run in full, since an epoch takes minutes on two CPU cores. Tests build the
network and train a small one of its kind.

The config is cifar100_bn with images that are mirrored, and shifted by up to 4 pixels (padded, then cropped at random).

SGD with momentum 0.9, a learning rate of 0.01 halved every 50 epochs, batches of 32. The lecture does not give the
number of epochs; this config has 200. Data: TFDS `cifar100`, or the original binary files in --data-dir.

    deepjax train cifar100_augmented --data-dir FOLDER
"""

from deepjax.config import Augment, Config, Data, Optimizer, Schedule

config = Config(
    data=Data(name="cifar100", validation=0.1, augment=Augment(flip=True, crop=4)),
    model="cifar_asymmetric",
    model_options={"norm": "batch"},
    optimizer=Optimizer(name="momentum", learning_rate=0.01, momentum=0.9),
    schedule=Schedule(name="step", period=50.0, factor=0.5),
    epochs=200,
    batch_size=32,
    eval_batch_size=500,
    log_every=100,
)
