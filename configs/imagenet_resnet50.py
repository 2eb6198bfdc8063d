"""ImageNet with the residual network of 50 layers: He et al. 2015, trained as in Goyal et al. 2017, section 5.1.

Expected result: 23.6 % top-1 error for the baseline of Goyal et al. with these settings (table 1). Not run in full
here; that needs several GPUs. It was run on small folders of images only.

90 epochs with batches of 256; the learning rate grows to 0.1 over five epochs and is divided by ten after epochs 30, 60
and 80. Random-area crops of 224 pixels, mirrored. Data: TFDS `imagenet2012` in --data-dir, or a folder with
train/CLASS/*.jpg and val/CLASS/*.jpg as --data.name.

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
