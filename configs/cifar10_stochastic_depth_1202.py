"""CIFAR-10 with 1,202 layers of stochastic depth and the settings of Huang et al. 2016, section 4.

Units are dropped for a whole batch, and then not computed: the last with probability 1/2, the others linearly less. 500
epochs with batches of 128 on 45,000 images, Nesterov momentum, the rate divided by ten after 250 and 375, as the paper
trains its 110 layers; for 1,202 it warms up at 0.01 for ten epochs, in which the rate grows to 0.1 here. Images are
padded by 4 pixels, cropped at random and mirrored. The paper gives 4.91 % test error; the same network without dropping
has 7.93 % (He et al. 2015). The full run is one for a GPU. The backward pass computes units again (remat "unit", which
such networks have unless told otherwise). Data: TFDS `cifar10`, or the original binary files in --data-dir.

    deepjax train cifar10_stochastic_depth_1202 --data-dir FOLDER

On two CPU cores it was only seen to run: --batch-size 8 on a JPEG-coded copy of the set, stopped after 56 updates. The
mean loss of updates 1 to 5 was 15.2, of updates 16 to 20 12.5; compiled in 4.4 s, 1.1 s an update.
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
