"""CIFAR-10 with eight layers, He's initialization and batch normalization.

Expected result: 49.0 % test error with learning rate 0.03 and weight decay 0.001, which the search of 12 candidates
finds, after 20 s of training (seed 0, two CPU cores, a JPEG-coded copy of the data set: --data.name cifar10_jpeg). At
this depth, batch normalization changes little: cifar10_mlp_eight_layer_he has 50.0 %.

The lecture's experiment is described in cifar10_mlp_linear.

Data: TFDS `cifar10`, or the original binary files in --data-dir. The search, and the run with what it finds:

    deepjax search cifar10_mlp_eight_layer_he_bn --data-dir FOLDER \\
        --optimizer.learning-rate 0.003,0.01,0.03,0.1 --optimizer.weight-decay 0,0.0001,0.001
    deepjax train cifar10_mlp_eight_layer_he_bn --data-dir FOLDER
"""

from deepjax.config import Config, Data, Optimizer

config = Config(
    data=Data(name="cifar10", validation=0.1, standardize="mean_image"),
    model="mlp",
    model_options={"depth": 8, "width": 100, "init": "he", "norm": "batch"},
    optimizer=Optimizer(name="momentum", learning_rate=0.03, weight_decay=0.001),
    best="error",
    epochs=10,
    batch_size=200,
    eval_batch_size=500,
    log_every=50,
)
