"""The kernel perceptron with the polynomial kernel of degree 3, which is a perceptron of all monomials.

TODO

    deepjax train kernel_perceptron
    deepjax train kernel_perceptron --model-options degree=1
"""

from deepjax.config import Config, Data, Devices, Optimizer

config = Config(
    data=Data(name="moons"),
    loss="perceptron",
    model="polynomial",
    model_options={"degree": 3},
    optimizer=Optimizer(name="sgd", learning_rate=1.0),
    devices=Devices(count=1),
    epochs=10,
    batch_size=1,
    eval_batch_size=100,
    best="error",
)
