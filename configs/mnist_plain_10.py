"""MNIST with a plain network of ten layers: no skips, no normalization (Xiao et al. 2018, arXiv 1806.05393).

mnist_plain_10, _100, _1000 and _10000 are equal but for their depth and their learning rate, 0.15 / sqrt(depth): one
epoch, 1,688 updates with batches of 32, the gradient's norm clipped at 1. A convolution of stride 7 makes 4x4 pixels of
16 features; then come depth - 2 equal 3x3 convolutions with ReLU, and the head. init "auto" measures that the signal
would be lost, and starts the network as a linear one (`init_from_data.auto`). Data: TFDS `mnist`, or the original IDX
files in --data-dir.

    deepjax train mnist_plain_10 --data-dir FOLDER

Errors at all four depths, with He's initialization beside: docs/depth.md.
"""

from deepjax.config import Config, Data, Optimizer, Schedule

config = Config(
    data=Data(name="mnist", validation=0.1),
    model="plain_cnn",
    model_options={"depth": 10, "stem_stride": 7, "remat": "sqrt"},
    init="auto",
    optimizer=Optimizer(name="momentum", learning_rate=0.047, clip_norm=1.0),
    schedule=Schedule(name="cosine"),
    epochs=1,
    batch_size=32,
    eval_batch_size=500,
    log_every=50,
)
