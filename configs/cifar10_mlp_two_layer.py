"""CIFAR-10 with two layers, the second of the lecture's experiment.

Expected result: 49.4 % test error (50.6 % correct; the lecture: 51 %) with learning rate 0.1 and no weight decay, which
the search of 12 candidates finds. Search and run together take two minutes (seed 0, two CPU cores, a JPEG-coded copy of
the data set: --data.name cifar10_jpeg).

The lecture's experiment is described in cifar10_mlp_linear.

Data: TFDS `cifar10`, or the original binary files in --data-dir. The search, and the run with what it finds:

    deepjax search cifar10_mlp_two_layer --data-dir FOLDER \\
        --optimizer.learning-rate 0.01,0.03,0.1,0.3 --optimizer.weight-decay 0,0.0001,0.001
    deepjax train cifar10_mlp_two_layer --data-dir FOLDER
"""

from deepjax.config import Config, Data, Optimizer

config = Config(
    data=Data(name="cifar10", validation=0.1, standardize="mean_image"),
    model="mlp",
    model_options={"depth": 2, "width": 200, "init": "gaussian", "scale": 1e-4},
    optimizer=Optimizer(name="momentum", learning_rate=0.1),
    best="error",
    epochs=10,
    batch_size=200,
    eval_batch_size=500,
    log_every=50,
)
