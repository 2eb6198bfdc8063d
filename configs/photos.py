"""Your own photographs: from a folder with one subfolder for each class to a classifier.

Expected result: depends on the photographs. 9.09 % test error (two of 22 images) on the folder of `deepjax datasets
sample`, in two to three minutes on two CPU cores.

FOLDER has CLASS/*.jpg, of which a fifth is drawn for testing, or train/CLASS/*.jpg, and test/ or val/ with the same
classes. Images may have any size and color mode, and lie in subfolders of their class's folder. They are resized to 96
pixels. The network is initialized from scratch. With a few hundred photographs, pretrained weights usually give lower
errors: --pretrained takes a weights file of torchvision's ResNet-18, a run, or resnet18, which is fetched from the hub.

    deepjax train photos --data-dir FOLDER
    deepjax train photos --data-dir FOLDER --pretrained resnet18.pth --data.image-size 224
"""

from deepjax.config import Augment, Config, Data, Optimizer, Schedule

config = Config(
    data=Data(
        name="folder",
        image_size=96,
        augment=Augment(flip=True, translate=8, scale=0.2, brightness=0.2, contrast=0.2, saturation=0.2),
    ),
    model="resnet18",
    optimizer=Optimizer(name="momentum", learning_rate=0.02, weight_decay=1e-4),
    schedule=Schedule(name="one_cycle"),
    label_smoothing=0.1,
    epochs=30,
    batch_size=32,
)
