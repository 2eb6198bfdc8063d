"""Fine-tuning of a pretrained network on the classes of a folder of photographs.

Expected result: depends on the photographs; not measured.

FOLDER has train/CLASS/*.jpg, and val/ or test/ with the same classes. --pretrained takes a weights file, the folder of
a run, or a network with weights on the hub. The head is initialized from scratch, and learns with ten times the
learning rate of the rest. Images are cropped and mirrored at random, and standardized as for the weights.

    deepjax train finetune --model resnet18 --pretrained PATH --data-dir FOLDER --freeze "stem*"

Parameters that --freeze names do not change; with --thaw 3 they are trained after three epochs. --freeze "*" trains the
head alone: the first group that matches counts, and the head has one. Frozen batch norms update their running moments,
as in PyTorch, unless --freeze-moments is set. Inception v3 needs --data.image-size 299.
"""

from deepjax.config import Augment, Config, Data, Optimizer, Schedule

config = Config(
    data=Data(name="folder", image_size=224, augment=Augment(flip=True, area=(0.25, 1.0))),
    model="resnet18",
    optimizer=Optimizer(name="momentum", learning_rate=0.001, groups={"*head/*": {"learning_rate": 0.01}}),
    schedule=Schedule(name="cosine"),
    epochs=10,
    batch_size=16,
)
