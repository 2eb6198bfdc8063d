"""CIFAR-100 with the lecture's network "1x3-3x1", all its regularizers added.

Expected result: not measured. It was not run in full, since an epoch takes minutes on two CPU cores. Tests build the
network and train a small one of its kind.

The config is cifar100_augmented with L2 regularization 0.0025 of kernels, dropout 0.5 before the two dense layers, and
label smoothing 0.1. The lecture does not define what its 0.0025 multiplies. This config uses it as weight decay, which
adds 0.0025 w to the gradient of the loss: the penalty is 0.0025 / 2 * sum(w^2). Keras' l2(0.0025), whose penalty is
0.0025 * sum(w^2), is a weight decay of 0.005.

SGD with momentum 0.9, a learning rate of 0.01 halved every 50 epochs, batches of 32. The lecture does not give the
number of epochs; this config has 200. Data: TFDS `cifar100`, or the original binary files in --data-dir.

    deepjax train cifar100_regularized --data-dir FOLDER
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
