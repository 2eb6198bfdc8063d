"""CIFAR-10 with the pre-activation network of 1,001 layers: He et al. 2016, appendix.

Expected result: 4.92 % test error in the paper, 4.62 % with batches of 64 (table 4), after 27 hours on two GPUs. Not
run in full here. On two CPU cores, with --batch-size 8 on a JPEG-coded copy of the data set, the mean loss fell from
2.49 in updates 1 to 5 to 2.42 in updates 16 to 20; compilation took 7.3 s, an update 1.2 s.

Bottleneck units of 64, 128 and 256 features. 64,000 updates with batches of 128; the learning rate is divided by ten
after 32,000 and 48,000 updates. Images are padded by 4 pixels, cropped at random and mirrored. In the first 400 updates
the paper's learning rate is 0.01; here it grows to 0.1 during these updates. 49,500 images are used for training and
500 for validation.

The backward pass recomputes the units (remat "sqrt"); `deepjax plan cifar10_preact1001` compares the choices. Data:
TFDS `cifar10`, or the original binary files in --data-dir.

    deepjax train cifar10_preact1001 --data-dir FOLDER
"""

from deepjax.config import Augment, Config, Data, Optimizer, Schedule

config = Config(
    data=Data(name="cifar10", validation=0.01, augment=Augment(flip=True, crop=4)),
    model="cifar_preact1001",
    model_options={"remat": "sqrt"},
    optimizer=Optimizer(name="momentum", learning_rate=0.1, weight_decay=1e-4),
    schedule=Schedule(name="step", warmup=1.0, milestones=(82.0, 124.0)),  # 387 updates an epoch
    epochs=165,
    batch_size=128,
    eval_batch_size=500,
    log_every=50,
)
