"""MNIST with Wan et al.'s network, which drops nothing: 2013, table 3, first block, at CPU size.

mnist_dropconnect_none, mnist_dropconnect_dropout and mnist_dropconnect_dropconnect are equal, but for what the layer of
150 units drops, at rate 0.5: here nothing.

The paper's first block has no augmentation, and features 32 and 64. Errors of its five networks each: No-Drop
0.77 +- 0.051 %, Dropout 0.59 +- 0.039 %, DropConnect 0.63 +- 0.035 %. Ours is of CPU size: features 8 and 16, trained
on a tenth of the training images, 6,000 (data.validation is 0.9; the other 54,000 measure the validation error), which
makes errors larger. Data: TFDS `mnist`, or the original IDX files in --data-dir.

    deepjax train mnist_dropconnect_none --data-dir FOLDER

Five seeds of all three:

    for drop in none dropout dropconnect; do for seed in 0 1 2 3 4; do
        deepjax train mnist_dropconnect_$drop --data-dir FOLDER --seed $seed --workdir runs/$drop-$seed
    done; done

Measured so on two CPU cores, about 14 s a run; test errors in %, seeds 0 to 4:

    none         2.18 2.08 2.08 2.05 2.07   mean 2.09
    dropout      2.23 2.25 2.25 1.90 2.06   mean 2.14
    dropconnect  2.21 2.27 2.15 1.99 2.02   mean 2.13

The paper's ordering (both better than none) does not show at this size: the means differ by less than the seeds do.
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
