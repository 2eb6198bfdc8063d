"""MNIST with a plain network of ten thousand layers: Xiao et al. 2018, arXiv 1806.05393.

Expected result: 24.99 % test error after one epoch, in 29 minutes on two CPU cores (seed 0).

The network has neither skips nor normalization. mnist_plain_10, _100, _1000 and _10000 differ only in depth and in the
learning rate, 0.15 / sqrt(depth). One epoch is 1,688 updates with batches of 32; the norm of the gradient is clipped at
1. A convolution of stride 7 makes maps of 4x4 pixels and 16 features; depth - 2 equal 3x3 convolutions with ReLU and
the head follow. init "auto" measures that the signal would vanish, and initializes the network so that it is linear at
first (`init_from_data.auto`). Data: TFDS `mnist`, or the original IDX files in --data-dir.

    deepjax train mnist_plain_10000 --data-dir FOLDER

All four depths, and with He's initialization instead:

    for depth in 10 100 1000 10000; do for init in auto model; do
        deepjax train mnist_plain_$depth --init $init --data-dir FOLDER --workdir runs/plain-$depth-$init
    done; done

Test error in % and time, with other programs running at the same time:

    depth        10      100     1000    10000
    init auto   3.71     4.71    7.58    24.99
    init model  4.12    88.65   88.65    chance
    time        2 s     21 s   4 min   29 min

88.65 % is chance: one class for all images. With He's initialization, the loss of 10,000 layers was between 2.296 and
2.308 in all of the first 167 updates; the run was stopped there.
"""

from deepjax.config import Config, Data, Optimizer, Schedule

config = Config(
    data=Data(name="mnist", validation=0.1),
    model="plain_cnn",
    model_options={"depth": 10000, "stem_stride": 7, "remat": "sqrt"},
    init="auto",
    optimizer=Optimizer(name="momentum", learning_rate=0.0015, clip_norm=1.0),
    schedule=Schedule(name="cosine"),
    epochs=1,
    batch_size=32,
    eval_batch_size=500,
    log_every=50,
)
