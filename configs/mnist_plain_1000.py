"""MNIST with a plain network of a thousand layers: Xiao et al. 2018, arXiv 1806.05393.

Expected result: 7.58 % test error after one epoch, in 4 minutes on two CPU cores (seed 0).

The network has neither skips nor normalization. mnist_plain_10, _100, _1000 and _10000 differ only in depth and in the
learning rate, 0.15 / sqrt(depth). One epoch is 1,688 updates with batches of 32; the norm of the gradient is clipped at
1. A convolution of stride 7 makes maps of 4x4 pixels and 16 features; depth - 2 equal 3x3 convolutions with ReLU and
the head follow. init "auto" measures that the signal would vanish, and initializes the network so that it is linear at
first (`init_from_data.auto`). Data: TFDS `mnist`, or the original IDX files in --data-dir.

    deepjax train mnist_plain_1000 --data-dir FOLDER

Errors at all four depths, also with He's initialization: docs/depth.md.
"""

from deepjax.config import Config, Data, Optimizer, Schedule

config = Config(
    data=Data(name="mnist", validation=0.1),
    model="plain_cnn",
    model_options={"depth": 1000, "stem_stride": 7, "remat": "sqrt"},
    init="auto",
    optimizer=Optimizer(name="momentum", learning_rate=0.0047, clip_norm=1.0),
    schedule=Schedule(name="cosine"),
    epochs=1,
    batch_size=32,
    eval_batch_size=500,
    log_every=50,
)
