"""MNIST with the lecture's full example: two convolutions, SGD without momentum, batches of 100, ten epochs.

Expected result: 2.80 % test error after one epoch (--epochs 1), in two minutes on two CPU cores that were shared with
other work (seed 0). The ten epochs were not run.

The network has 105,506 parameters: 5x5 convolutions of 32 and 64 features, max pooling of 3x3 and 2x2, 200 hidden
units. The images are standardized by one mean and one deviation, and all 60,000 are for training, as in the lecture,
which gives neither the learning rate nor a result. The initial weights are He's, with which a rate of 0.1 is too high:
the loss goes up to 4 first. Data: TFDS `mnist`, or the original IDX files in --data-dir.

    deepjax train mnist_convnet --data-dir FOLDER
"""

from deepjax.config import Config, Data, Optimizer

config = Config(
    data=Data(name="mnist", validation=0.0),
    model="mnist_convnet",
    optimizer=Optimizer(name="sgd", learning_rate=0.02),
    epochs=10,
    batch_size=100,
    eval_batch_size=500,
    log_every=50,
)
