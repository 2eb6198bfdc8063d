"""Fine-tuning: a network with pretrained weights learns the classes of a folder of photographs.

The head begins anew, at ten times the rate of the rest. Images are cropped and mirrored at random, and standardized as
they were for the weights. FOLDER has train/CLASS/*.jpg, and val/ or test/ with the same classes. --pretrained takes a
weights file, a run's folder, or a network of which there are weights on the hub.

    deepjax train finetune --model resnet18 --pretrained PATH --data-dir FOLDER --freeze "stem*"

What --freeze names stays to the bit; with --thaw 3 it is trained after three epochs. --freeze "*" trains the head
alone: of the groups that match, the first counts, and here that is the head's. Frozen batch norms go on moving their
running moments, as PyTorch's do, unless there is --freeze-moments. Inception v3 wants --data.image-size 299.
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
