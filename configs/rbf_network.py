"""RBF network

deepjax train rbf_network
"""

from deepjax.config import Config, Data, Optimizer

config = Config(
    data=Data(name="xor"),
    model="rbf",
    model_options={"units": 8},
    init="rbf",
    optimizer=Optimizer(name="adam", learning_rate=0.01),
    epochs=20,
    batch_size=50,
    eval_batch_size=100,
)
