"""CIFAR-10 with the lecture's monster: the first layer of a pretrained AlexNet, then sixteen residual blocks.

Expected result: not measured. The full run needs a GPU; it was run on small folders of images only.

The layer is frozen for the first half of the epochs. PATH is torchvision's AlexNet as .safetensors or .pth; only its
features.0.weight and features.0.bias are read. The images are enlarged to 64x64 pixels, and standardized as for
AlexNet. Data: TFDS `cifar10`, or the original files in --data-dir; or --data.name folder, with train/CLASS/*.jpg in
--data-dir.

    deepjax train monster --pretrained PATH --data-dir FOLDER
"""

from deepjax.config import Augment, Config, Data, Optimizer, Schedule

config = Config(
    data=Data(name="cifar10", image_size=64, augment=Augment(flip=True, crop=8)),
    model="monster",
    freeze=("features/*",),
    thaw_share=0.5,
    optimizer=Optimizer(name="momentum", learning_rate=0.05, weight_decay=1e-4),
    schedule=Schedule(name="cosine"),
    epochs=30,
    batch_size=128,
    eval_batch_size=500,
)
