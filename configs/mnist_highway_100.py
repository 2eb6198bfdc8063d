"""MNIST with a highway network of 100 dense layers: Srivastava et al. 2015, arXiv 1507.06228, section 3.1.

Expected result: 3.66 % test error after five epochs; 7.21 % after one (--epochs 1), in 7 s on two CPU cores (seed 0).

Every layer has 50 units, and the gates start at the network's usual bias, -log(100) = -4.6, so that about 1/e of the
first layer's output reaches the last one. The same epoch with 50 layers ends at 5.98 %. A bias that suits ten layers,
-1, and a perceptron of 100 layers without gates learn nothing: 88.65 %.

    deepjax train mnist_highway_100 --data-dir FOLDER
    deepjax train mnist_highway_100 --data-dir FOLDER --epochs 1 --model-options depth=50
    deepjax train mnist_highway_100 --data-dir FOLDER --epochs 1 --model-options bias=-1.0
    deepjax train mnist_highway_100 --data-dir FOLDER --epochs 1 --model mlp --model-options depth=100 width=50

The paper's error is not given for this network; its figure 1 shows the training loss. Data: TFDS `mnist`, or the
original IDX files in --data-dir.
"""

from deepjax.config import Config, Data, Optimizer, Schedule

config = Config(
    data=Data(name="mnist", validation=0.1),
    model="highway",
    model_options={"depth": 100},
    optimizer=Optimizer(name="momentum", learning_rate=0.02),
    schedule=Schedule(name="cosine"),
    epochs=5,
    batch_size=100,
    eval_batch_size=500,
    log_every=50,
)
