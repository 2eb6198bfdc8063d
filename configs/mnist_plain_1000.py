"""MNIST with a plain network of a thousand layers: no skips, no normalization (Xiao et al. 2018, arXiv 1806.05393).

mnist_plain_10, _100, _1000 and _10000 are equal but for their depth and their learning rate, 0.15 / sqrt(depth): one
epoch, 1,688 updates with batches of 32, the gradient's norm clipped at 1. A convolution of stride 7 makes 4x4 pixels of
16 features; then come depth - 2 equal 3x3 convolutions with ReLU, and the head. init "auto" measures that the signal
would be lost, and starts the network as a linear one (`init_from_data.auto`). Data: TFDS `mnist`, or the original IDX
files in --data-dir.

    deepjax train mnist_plain_1000 --data-dir FOLDER

All four, and with He's initialization instead:

    for depth in 10 100 1000 10000; do for init in auto model; do
        deepjax train mnist_plain_$depth --init $init --data-dir FOLDER --workdir runs/plain-$depth-$init
    done; done

Measured on two CPU cores, seed 0; test error in %, and the time it took with other work beside it:

    depth        10      100     1000    10000
    init auto   3.71     4.71    7.58    24.99
    init model  4.12    88.65   88.65    chance
    time        2 s     21 s   4 min   29 min

88.65 % is chance: one class for all images. With He's initialization, 10,000 layers had a loss of 2.296 to 2.308 in all
of the first 167 updates, and were stopped there.
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
