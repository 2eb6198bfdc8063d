"""CIFAR-10 with 1,202 layers and stochastic depth: Huang et al. 2016, section 4.

Expected result: 4.91 % test error in the paper; without stochastic depth the network has 7.93 % (He et al. 2015). Not
run in full here; that needs a GPU. On two CPU cores, with --batch-size 8 on a JPEG-coded copy of the data set, the mean
loss fell from 15.2 in updates 1 to 5 to 12.5 in updates 16 to 20; compilation took 4.4 s, an update 1.1 s.

Units are dropped for a whole batch, and are then not computed. The probability grows linearly to 1/2 at the last unit.
500 epochs with batches of 128 on 45,000 images and Nesterov momentum; the learning rate is divided by ten after epochs
250 and 375, as the paper trains its network of 110 layers. For 1,202 layers the paper starts with a learning rate of
0.01 for ten epochs; here it grows to 0.1 in ten epochs. Images are padded by 4 pixels, cropped at random and mirrored.

The backward pass recomputes the units (remat "unit", the default of networks with stochastic depth). Data: TFDS
`cifar10`, or the original binary files in --data-dir.

    deepjax train cifar10_stochastic_depth_1202 --data-dir FOLDER
"""

from deepjax.config import Augment, Config, Data, Optimizer, Schedule

config = Config(
    data=Data(name="cifar10", validation=0.1, augment=Augment(flip=True, crop=4)),
    model="stochastic_depth1202",
    optimizer=Optimizer(name="nesterov", learning_rate=0.1, weight_decay=1e-4),
    schedule=Schedule(name="step", warmup=10.0, milestones=(250.0, 375.0)),
    epochs=500,
    batch_size=128,
    eval_batch_size=500,
    log_every=50,
)
