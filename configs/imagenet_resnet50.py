"""ImageNet with the residual network of 50 layers: He et al. 2015, trained as in Goyal et al. 2017, section 5.1.

90 epochs with batches of 256, rate 0.1 with five epochs of warm-up, divided by ten after 30, 60 and 80; random-area
crops of 224 pixels, mirrored. Goyal et al. report 23.6 % top-1 error for their baseline with these settings (table 1).
The full run is one for several GPUs; we have exercised it on small folders of images only. Data: TFDS `imagenet2012`
in --data-dir, or a folder with train/CLASS/*.jpg and val/CLASS/*.jpg as --data.name.

    deepjax train imagenet_resnet50 --data-dir FOLDER
"""

from deepjax.config import Augment, Config, Data, Optimizer, Schedule

config = Config(
    data=Data(
        name="imagenet2012",
        validation=0.01,
        image_size=224,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        placement="host",
        workers=8,
        augment=Augment(flip=True, area=(0.08, 1.0)),
    ),
    model="resnet50",
    optimizer=Optimizer(name="momentum", learning_rate=0.1, weight_decay=1e-4),
    schedule=Schedule(name="step", warmup=5.0, milestones=(30.0, 60.0, 80.0)),
    epochs=90,
    batch_size=256,
    log_every=100,
    checkpoint_every=1000,
)
