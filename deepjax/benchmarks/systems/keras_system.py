"""The system keras: the workloads in Keras 3 with the JAX backend, in a compiled step as in Keras' guide for JAX."""

import os

os.environ["KERAS_BACKEND"] = "jax"  # Keras reads it once, when it is imported

import jax
import jax.numpy as jnp
import keras  # pyright: ignore[reportMissingImports]
import numpy as np
from keras import layers  # pyright: ignore[reportMissingImports]

from deepjax.benchmarks import cells, programs, workloads
from deepjax.summary.costs import multiply_adds

HIDDEN = {"fcn_s": (2048, 2048, 2048), "fcn_r": (2048, 4096, 1024)}


def load(job):
    """Return the program of a job."""
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if job["dtype"] == "bfloat16" else "float32")
    return Training(workloads.Workload(**job["workload"]))


class Training(programs.JaxProgram):
    """Training steps of a Keras model on a workload's batch."""

    def __init__(self, work):
        self.model = network(work)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        optimizer = keras.optimizers.SGD(workloads.LEARNING_RATE, workloads.MOMENTUM)
        optimizer.build(self.model.trainable_variables)

        def loss_of(trainable, others, inputs, labels):
            logits, others = self.model.stateless_call(trainable, others, inputs, training=True)
            return loss(labels, jnp.astype(logits, jnp.float32)), others

        def step(state, batch):
            trainable, others, momenta = state
            gradient = jax.value_and_grad(loss_of, has_aux=True)
            (value, others), gradients = gradient(trainable, others, *batch)
            trainable, momenta = optimizer.stateless_apply(momenta, gradients, trainable)
            return (trainable, others, momenta), value

        first = [_start(variable) for variable in self.model.trainable_variables]
        others = [variable.value for variable in self.model.non_trainable_variables]
        state = first, others, [variable.value for variable in optimizer.variables]
        self.first = state
        batch = jax.tree.map(jnp.asarray, workloads.data(work))
        super().__init__(jax.jit(step, donate_argnums=0), jax.eval_shape(lambda: state), batch)

    def facts(self, jaxpr):
        """See `programs.JaxProgram.facts`."""
        count = sum(int(np.prod(variable.shape)) for variable in self.model.trainable_variables)
        return {"macs": multiply_adds(jaxpr.jaxpr), "parameters": count}

    def start(self):
        """See `programs.JaxProgram.start`."""
        return self.first


def _start(variable):
    """Return the first value of a Keras variable, equal to that of the other systems."""
    name, shape = variable.path.rpartition("/")[2], tuple(variable.shape)
    if name == "embeddings":
        return jnp.asarray(cells.start("embedding", shape))
    if name == "gamma":
        return jnp.ones(shape)
    if "lstm_cell" in variable.path and "kernel" in name:
        return jnp.asarray(cells.start("gates", shape))
    return jnp.asarray(cells.start("kernel" if "kernel" in name else "bias", shape))


def network(work):
    """Return the Keras model of a workload."""
    x = keras.Input(work.shape, dtype="int32" if len(work.shape) == 1 else "float32")
    builders = {"alexnet": _alexnet, "alexnet_r": _alexnet_r, "resnet50": _resnet50, "cifar_resnet": _cifar_resnet}
    builders |= {"fcn_s": _fcn, "fcn_r": _fcn, "lstm": _lstm}
    return keras.Model(x, builders[work.network](x, work))


def _fcn(x, work):
    y = layers.Flatten()(x)
    for width in HIDDEN[work.network]:
        y = layers.Dense(width, "sigmoid")(y)
    return layers.Dense(work.classes)(y)


def _alexnet(x, work):
    y = layers.ZeroPadding2D(2)(x)
    y = layers.MaxPooling2D(3, 2)(layers.Conv2D(64, 11, 4, activation="relu")(y))
    y = layers.MaxPooling2D(3, 2)(layers.Conv2D(192, 5, padding="same", activation="relu")(y))
    for features in (384, 256, 256):
        y = layers.Conv2D(features, 3, padding="same", activation="relu")(y)
    y = layers.Flatten()(layers.MaxPooling2D(3, 2)(y))
    for _ in range(2):
        y = layers.Dense(4096, "relu")(layers.Dropout(work.options.get("dropout", 0.5))(y))
    return layers.Dense(work.classes)(y)


def _alexnet_r(x, work):
    y = x
    for features, pool in ((32, layers.MaxPooling2D), (32, layers.MaxPooling2D), (64, layers.AveragePooling2D)):
        y = pool(3, 2)(layers.Conv2D(features, 5, padding="same", activation="relu")(y))
    return layers.Dense(work.classes)(layers.Flatten()(y))


def _conv(x, features, window, stride=1, relu=True):
    """Return convolution, batch norm and ReLU, padded by half the window."""
    x = layers.ZeroPadding2D(window // 2)(x) if stride > 1 and window > 1 else x
    x = layers.Conv2D(features, window, stride, "valid" if stride > 1 else "same", use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)
    return layers.ReLU()(x) if relu else x


def _resnet50(x, work):
    y = layers.ZeroPadding2D(1)(_conv(x, 64, 7, 2))  # after a ReLU, zeros are as good as minus infinity
    y = layers.MaxPooling2D(3, 2)(y)
    for stage, units in enumerate((3, 4, 6, 3)):
        for unit in range(units):
            features, stride = 64 * 2**stage, 2 if stage > 0 and unit == 0 else 1
            branch = _conv(_conv(y, features, 1), features, 3, stride)
            branch = _conv(branch, 4 * features, 1, relu=False)
            y = y if unit else _conv(y, 4 * features, 1, stride, relu=False)
            y = layers.ReLU()(layers.Add()([y, branch]))
    return layers.Dense(work.classes)(layers.GlobalAveragePooling2D()(y))


def _cifar_resnet(x, work):
    y = _conv(x, 16, 3)
    for stage in range(3):
        for unit in range((work.options["depth"] - 2) // 6):
            features, stride = 16 * 2**stage, 2 if stage > 0 and unit == 0 else 1
            branch = _conv(_conv(y, features, 3, stride), features, 3, relu=False)
            if stride > 1:  # option A of He et al. 2015: every second pixel, and zeros for the new features
                y = keras.ops.pad(y[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (0, features // 2)))
            y = layers.ReLU()(layers.Add()([y, branch]))
    return layers.Dense(work.classes)(layers.GlobalAveragePooling2D()(y))


def _lstm(x, work):
    y = layers.Embedding(work.options["vocabulary"], work.options["width"])(x)
    for _ in range(work.options["layers"]):
        y = layers.LSTM(work.options["width"], return_sequences=True, unit_forget_bias=False)(y)
    return layers.Dense(work.options["vocabulary"])(y)
