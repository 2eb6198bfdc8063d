"""CIFAR-10 with the residual network of 20 layers: He et al. 2015, section 4.2.

Expected result: 8.75 % test error in the paper's table 6. Not run in full here; that needs a GPU. On two CPU cores, the
first two epochs took 10 minutes and gave 47.3 % on a JPEG-coded copy of the data set (--data.name cifar10_jpeg --epochs
2).

64,000 updates with batches of 128 on 45,000 images; the learning rate is divided by ten after 32,000 and 48,000
updates. Images are padded by 4 pixels, cropped at random and mirrored. Data: TFDS `cifar10`, or the original binary
files in --data-dir.

    deepjax train cifar10_resnet20 --data-dir FOLDER
"""

from deepjax.config import Augment, Config, Data, Optimizer, Schedule

config = Config(
    data=Data(name="cifar10", validation=0.1, augment=Augment(flip=True, crop=4)),
    model="cifar_resnet20",
    optimizer=Optimizer(name="momentum", learning_rate=0.1, weight_decay=1e-4),
    schedule=Schedule(name="step", milestones=(91.0, 136.0)),  # 352 updates an epoch
    epochs=182,
    batch_size=128,
    eval_batch_size=500,
    log_every=50,
)
