"""CIFAR-10 with the lecture's monster: the first layer of a pretrained AlexNet, then sixteen residual blocks.

Expected result: not measured. The full run needs a GPU; it was run on small folders of images only.

The layer is frozen for the first 50 of 100 epochs. The optimizer is SGD without momentum, with a learning rate of 0.01.
The lecture does not give the size of its batches; this config has 100. PATH is torchvision's AlexNet as .safetensors or
.pth; only its features.0.weight and features.0.bias are read. The images are those of CIFAR, 32x32 pixels, standardized
as for AlexNet. Data: TFDS `cifar10`, or the original files in --data-dir; or --data.name folder, with train/CLASS/*.jpg
in --data-dir, which are resized.

    deepjax train monster --pretrained PATH --data-dir FOLDER
"""

from deepjax.config import Config, Data, Optimizer

config = Config(
    data=Data(name="cifar10", image_size=32),
    model="monster",
    freeze=("features/*",),
    thaw_share=0.5,
    optimizer=Optimizer(name="sgd", learning_rate=0.01),
    epochs=100,
    batch_size=100,
    eval_batch_size=500,
)
