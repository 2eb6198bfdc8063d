"""CIFAR-10 with eight layers and small Gaussian initial weights, with which nothing works.

Expected result: 90.0 % test error and a loss of 2.3026, which is chance, after 18 s of training. The search says that
none of its 8 candidates is better than chance, and trains nothing (seed 0, two CPU cores, a JPEG-coded copy of the data
set: --data.name cifar10_jpeg). Each layer multiplies the signal by 1e-4 sqrt(100 / 2) = 0.0007, and the gradient too.

The lecture's experiment is described in cifar10_mlp_linear.

Data: TFDS `cifar10`, or the original binary files in --data-dir. The search, and the run with what it finds:

    deepjax search cifar10_mlp_eight_layer_gaussian --data-dir FOLDER \\
        --optimizer.learning-rate 0.001,0.01,0.1,1 --optimizer.weight-decay 0,0.001
    deepjax train cifar10_mlp_eight_layer_gaussian --data-dir FOLDER
"""

from deepjax.config import Config, Data, Optimizer

config = Config(
    data=Data(name="cifar10", validation=0.1, standardize="mean_image"),
    model="mlp",
    model_options={"depth": 8, "width": 100, "init": "gaussian", "scale": 1e-4},
    optimizer=Optimizer(name="momentum", learning_rate=0.01),
    best="error",
    epochs=10,
    batch_size=200,
    eval_batch_size=500,
    log_every=50,
)
