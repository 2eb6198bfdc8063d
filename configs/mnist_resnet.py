"""MNIST with a residual network of 20 layers.

Expected result: 0.40 % test error (seed 0) in 14 minutes on two CPU cores.

The network is that of He et al. 2015, section 4.2, with a stride of 2 in the stem, which makes it four times cheaper.
The images are shifted and scaled a little. Data: TFDS `mnist`, or the original IDX files in --data-dir.

    deepjax train mnist_resnet --data-dir FOLDER
"""

from deepjax.config import Augment, Config, Data, Optimizer, Schedule

config = Config(
    data=Data(name="mnist", validation=0.05, augment=Augment(translate=2.0, scale=0.1)),
    model="cifar_resnet20",
    model_options={"stem_stride": 2},
    optimizer=Optimizer(name="nesterov", learning_rate=0.2, weight_decay=1e-4),
    schedule=Schedule(name="one_cycle"),
    epochs=12,
    batch_size=128,
    eval_batch_size=500,
)
