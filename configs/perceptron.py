"""The perceptron of Rosenblatt 1958 for ten digits: one weight vector for each class, one example at a time.

Expected result: test error 4.67 to 7.33 %, 6.07 % on average (--seed 0 to 4; one of the 300 test images is 0.33 %),
in about 20 s of training on two CPU cores that were shared with other work. scikit-learn's Perceptron, which learns
each class against the rest, has 5.67 to 7.67 % after as many epochs (random_state 0 to 4).

For a wrong prediction, the image is added to the weights of its class and subtracted from those of the predicted
class. This is gradient descent at rate 1 on the highest score minus that of the class. With two classes it is the
rule of the lecture, w + (y - yhat) x / 2, whose weights are half the difference of the classes'
(tests/tasks/test_scored.py). The epoch with the lowest validation error is tested.

    deepjax train perceptron
"""

from deepjax.config import Config, Data, Devices, Optimizer

config = Config(
    data=Data(name="digits"),
    loss="perceptron",
    model="mlp",
    model_options={"depth": 1, "init": "zeros"},
    optimizer=Optimizer(name="sgd", learning_rate=1.0),
    devices=Devices(count=1),
    epochs=10,
    batch_size=1,
    eval_batch_size=100,
    best="error",
)
