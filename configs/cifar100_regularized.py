"""CIFAR-100 with the lecture's network "1x3-3x1": batch normalization, augmentation, L2, dropout, smoothing.

cifar100_augmented with L2 regularization 0.0025 of kernels, dropout 0.5 before the two dense layers, and label
smoothing 0.1. The lecture does not say what its 0.0025 multiplies. Here it is weight decay, which adds 0.0025 w to the
gradient, the penalty 0.0025 / 2 * sum(w^2). Keras' l2(0.0025), 0.0025 * sum(w^2), would be a weight decay of 0.005.

SGD with momentum 0.9, rate 0.01 halved every 50 epochs, batches of 32. The lecture does not say for how long: we take
200 epochs. Data: TFDS `cifar100`, or the original binary files in --data-dir.

    deepjax train cifar100_regularized --data-dir FOLDER

Not run in full: an epoch takes minutes on two CPU cores, and the set was not at hand. Nor have its first steps been
taken on images: tests build the network and train a small one of its kind.
"""

from deepjax.config import Augment, Config, Data, Optimizer, Schedule

config = Config(
    data=Data(name="cifar100", validation=0.1, augment=Augment(flip=True, crop=4)),
    model="cifar_asymmetric",
    model_options={"norm": "batch", "dropout": 0.5},
    optimizer=Optimizer(name="momentum", learning_rate=0.01, momentum=0.9, weight_decay=0.0025),
    schedule=Schedule(name="step", period=50.0, factor=0.5),
    epochs=200,
    batch_size=32,
    eval_batch_size=500,
    label_smoothing=0.1,
    log_every=100,
)
