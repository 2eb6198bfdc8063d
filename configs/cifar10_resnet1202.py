"""CIFAR-10 with the residual network of 1,202 layers: He et al. 2015, section 4.2.

Expected result: 7.93 % test error in the paper's table 6 (it overfits: 110 layers have 6.43 %). Not run in full here;
that needs a GPU. On two CPU cores, with --batch-size 8 on a JPEG-coded copy of the data set, the mean loss fell from
16.9 in updates 1 to 5 to 9.5 in updates 16 to 20; compilation took 6.1 s, an update 1.3 s.

64,000 updates with batches of 128 on 45,000 images; the learning rate is divided by ten after 32,000 and 48,000
updates. Images are padded by 4 pixels, cropped at random and mirrored. The paper starts its network of 110 layers with
a learning rate of 0.01 for about 400 updates; here it grows to 0.1 during these updates.

The backward pass recomputes the units, one group at a time (remat "sqrt"), which needs less than a tenth of the memory;
`deepjax plan cifar10_resnet1202` compares the choices. Data: TFDS `cifar10`, or the original binary files in
--data-dir.

    deepjax train cifar10_resnet1202 --data-dir FOLDER
"""

from deepjax.config import Augment, Config, Data, Optimizer, Schedule

config = Config(
    data=Data(name="cifar10", validation=0.1, augment=Augment(flip=True, crop=4)),
    model="cifar_resnet1202",
    model_options={"remat": "sqrt"},
    optimizer=Optimizer(name="momentum", learning_rate=0.1, weight_decay=1e-4),
    schedule=Schedule(name="step", warmup=1.14, milestones=(91.0, 136.0)),  # 352 updates an epoch
    epochs=182,
    batch_size=128,
    eval_batch_size=500,
    log_every=50,
)
