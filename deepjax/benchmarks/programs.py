"""The programs in JAX: training steps of CIFAR networks, and loss and gradients of stages of equal units."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from deepjax import functional
from deepjax.benchmarks import cells
from deepjax.benchmarks.flax_net import FlaxResNet
from deepjax.units import Add, Branch, Plain, Reversible, Unit, stack
from deepjax.zoo.plain import DenseUnit
from deepjax.zoo.residual_cifar import VARIANTS
from deepjax.zoo.reversible import RevNet


def reversible_unit(width):
    """Return a reversible unit: two streams of `width` features, with one convolution for each."""
    f, g = (Branch((width,), (3,), (1,), "pre", parent=None) for _ in "fg")
    return Reversible(f, g, parent=None)


def network(cell):
    """Return the Linen module of a cell of kind "net"."""
    depth, width = cell.depth, cell.width
    if cell.variant == "flax":
        return FlaxResNet((depth - 2) // 6, width, cells.CLASSES)
    if cell.variant == "stochastic":
        return VARIANTS["stochastic_depth"](depth, cells.CLASSES, width=width, survival=0.5, per="batch")
    how = {"scan": cell.variant != "unrolled", "remat": cells.SCANNED.get(cell.variant, "none")}
    if cell.unit == "reversible":
        widths = tuple(2 * width * scale for scale in (1, 2, 4))
        return RevNet(((depth - 2) // 6,) * 3, widths, windows=(3,), num_classes=cells.CLASSES).clone(**how)
    join = Plain if cell.unit == "plain" else Add
    order = "pre" if cell.unit == "preact" else "post"
    return VARIANTS["cifar_resnet"](depth, cells.CLASSES, width=width).clone(join=join, order=order, **how)


def stage(cell):
    """Return (stack, shape of its input) of a cell of kind "stage"."""
    maps = (cell.batch, 32, 32)
    unit, shape = {
        "dense": lambda: (DenseUnit(), (cell.batch, 4 * cell.width)),
        "conv": lambda: (
            Unit(Branch((cell.width,), (3,), (1,)), Plain(), activation=functional.relu),
            (*maps, cell.width),
        ),
        "reversible": lambda: (reversible_unit(cell.width), (*maps, 2 * cell.width)),
    }[cell.unit]()
    return stack(unit, cell.depth, remat=cells.SCANNED[cell.variant]), shape


class Program:
    """A cell's program. Call `prepare` once, then `step` any number of times."""

    def __init__(self, cell):
        """Compute shapes only. Nothing is compiled, and no array is created."""
        self.cell, self.state = cell, None
        hits = self.hits = []
        jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if "cache_hits" in event else None)
        if cell.kind == "stage":
            model, shape = stage(cell)
            self.batch = jax.ShapeDtypeStruct(shape, jnp.float32)
            self.shapes, self.program = self._variables(model, self.batch), jax.jit(_gradients_of(model))
        else:
            model, self.batch = network(cell), jax.tree.map(jnp.asarray, cells.images(cell.batch))
            variables = self._variables(model, self.batch[0])
            optimizer = optax.sgd(cells.LEARNING_RATE, cells.MOMENTUM)
            steps_done = jax.ShapeDtypeStruct((), jnp.int32)
            self.shapes = variables, (jax.eval_shape(optimizer.init, variables["params"]), steps_done)
            self.program = jax.jit(_training_step(model, optimizer), donate_argnums=0)

    @staticmethod
    def _variables(model, x):
        return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)

    def prepare(self):
        """Trace, lower and compile the program. Yield a dict with the time of each phase."""
        jax.clear_caches()  # so that the traces made for the shapes are not reused
        self.hits.clear()
        traced, seconds = _timed(lambda: self.program.trace(self.shapes, self.batch))
        yield {"phase": "trace", "seconds": seconds}
        lowered, seconds = _timed(traced.lower)
        yield {"phase": "lower", "seconds": seconds}
        self.compiled, seconds = _timed(lowered.compile)
        memory: Any = self.compiled.memory_analysis()
        yield {
            "phase": "compile",
            "seconds": seconds,
            "cache_hits": len(self.hits),
            "platform": jax.default_backend(),
            "temporaries": memory.temp_size_in_bytes,
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
        }

    def step(self):
        """Take one training step, wait for its end, and return the loss before the update."""
        if self.state is None:
            self.state = self._start()
        self.state, loss = self.compiled(self.state, self.batch)
        jax.block_until_ready(self.state)
        return float(loss)

    def _start(self):
        variables, rest = self.shapes
        variables = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.array(cells.start(path[-1].key, leaf.shape)), variables
        )
        return variables, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), rest)


def _timed(function: Callable):
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def _training_step(model, optimizer):
    """Return a function (state, (images, labels)) -> (state, loss); state is (variables, (optimizer state, steps))."""

    def step(state, batch):
        variables, (optimizer_state, count) = state
        rngs = {"dropout": jax.random.fold_in(jax.random.key(0), count)}

        def loss_of(params):
            logits, new = model.apply(
                {**variables, "params": params}, batch[0], train=True, mutable=["batch_stats"], rngs=rngs
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(), new

        (loss, new), gradients = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
        updates, optimizer_state = optimizer.update(gradients, optimizer_state)
        params = optax.apply_updates(variables["params"], updates)
        return ({"params": params, **new}, (optimizer_state, count + 1)), loss

    return step


def _gradients_of(model):
    """Return the function (variables, x) -> (loss, gradients, new batch statistics).

    The gradients are outputs and do not count as temporaries, because they grow with depth for every `remat`.
    """

    def gradients(variables, x):
        def loss_of(params):
            y, new = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return (y**2).mean(), new

        (loss, new), gradients = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
        return loss, gradients, new

    return gradients
