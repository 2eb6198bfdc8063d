"""CIFAR-10 with the residual network of 1,202 layers and the settings of He et al. 2015, section 4.2.

64,000 updates with batches of 128 on 45,000 images, the rate divided by ten after 32,000 and 48,000; images padded by 4
pixels, cropped at random and mirrored. The paper starts its 110 layers at a rate of 0.01 for about 400 updates; here
the rate grows to 0.1 over as many. Its table 6 gives 7.93 % test error (overfitted: 110 layers have 6.43 %). The full
run is one for a GPU. The backward pass computes units again, a group at a time (remat "sqrt"), which needs less than a
tenth of the memory; `deepjax plan cifar10_resnet1202` compares the choices. Data: TFDS `cifar10`, or the original
binary files in --data-dir.

    deepjax train cifar10_resnet1202 --data-dir FOLDER

On two CPU cores it was only seen to run: --batch-size 8 on a JPEG-coded copy of the set, stopped after 43 updates. The
mean loss of updates 1 to 5 was 16.9, of updates 16 to 20 9.5; compiled in 6.1 s, 1.3 s an update.
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
