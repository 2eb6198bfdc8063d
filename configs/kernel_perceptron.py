"""The kernel perceptron with the polynomial kernel of degree 3, on two moons: a perceptron of all monomials.

Expected result: test error 2.50 to 3.50 %, 2.90 % on average (--seed 0 to 4; 200 test points), in 10 to 20 s of
training on two CPU cores that were shared with other work. A line (degree=1) has 16.00 % (seed 0). The lecture's
experiment of 50 examples is `deepjax figure kernel-perceptron`.

The network has the ten monomials of two numbers up to degree 3, scaled so that the scalar product of two examples
is (1 + <x, z>)^3. A perceptron of these features makes the decisions of the kernel perceptron, sum of y_i k(x_i, x)
over its mistakes (tests/zoo/test_features.py).

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
