"""CIFAR-10 with the pre-activation network of 1,001 layers and the settings of He et al. 2016, appendix.

Bottleneck units of 64, 128 and 256 features. 64,000 updates with batches of 128, the rate divided by ten after 32,000
and 48,000; images padded by 4 pixels, cropped at random and mirrored; the rate is 0.01 in the paper's first 400
updates, and grows to 0.1 over as many here. All 50,000 images are trained on but for 500, which measure the validation
error. The paper gives 4.92 % test error, and 4.62 % with batches of 64 (table 4). The full run is one for GPUs: the
paper's took 27 hours on two. Units are computed again in the backward pass (remat "sqrt"); `deepjax plan
cifar10_preact1001` compares the choices. Data: TFDS `cifar10`, or the original binary files in --data-dir.

    deepjax train cifar10_preact1001 --data-dir FOLDER

On two CPU cores it was only seen to run: --batch-size 8 on a JPEG-coded copy of the set, stopped after 46 updates. The
mean loss of updates 1 to 5 was 2.49, of updates 16 to 20 2.42; compiled in 7.3 s, 1.2 s an update.
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
