"""MNIST with the network of Wan et al. 2013, without dropping: table 3, first block, at CPU size.

Expected result: 2.09 % test error, the mean of five seeds, each in about 14 s on two CPU cores.

mnist_dropconnect_none, mnist_dropconnect_dropout and mnist_dropconnect_dropconnect differ only in what the layer of 150
units drops with rate 0.5: here nothing.

The first block of the paper has no augmentation, and 32 and 64 features. The errors of its five networks are 0.77 +-
0.051 % (No-Drop), 0.59 +- 0.039 % (Dropout) and 0.63 +- 0.035 % (DropConnect). This network has 8 and 16 features and
is trained on 6,000 images, a tenth of the training set (data.validation is 0.9; the other 54,000 images measure the
validation error), so its errors are larger. Data: TFDS `mnist`, or the original IDX files in --data-dir.

    deepjax train mnist_dropconnect_none --data-dir FOLDER

Five seeds of all three:

    for drop in none dropout dropconnect; do for seed in 0 1 2 3 4; do
        deepjax train mnist_dropconnect_$drop --data-dir FOLDER --seed $seed --workdir runs/$drop-$seed
    done; done

Test errors in %, seeds 0 to 4:

    none         2.18 2.08 2.08 2.05 2.07   mean 2.09
    dropout      2.23 2.25 2.25 1.90 2.06   mean 2.14
    dropconnect  2.21 2.27 2.15 1.99 2.02   mean 2.13

The order in the paper (both better than none) is not visible at this size: the means differ by less than the seeds do.
"""

from deepjax.config import Config, Data, Optimizer, Schedule

config = Config(
    data=Data(name="mnist", validation=0.9),
    model="mnist_cnn",
    model_options={"width": 8},
    optimizer=Optimizer(name="nesterov", learning_rate=0.02),
    schedule=Schedule(name="one_cycle"),
    epochs=10,
    batch_size=32,
    eval_batch_size=500,
    log_every=50,
)
