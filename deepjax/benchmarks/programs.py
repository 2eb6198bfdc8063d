"""The programs in JAX: training steps of CIFAR networks, and loss and gradients of stages of equal units."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

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


class JaxProgram:
    """A jitted function of (state, batch), compiled ahead of time. Call `prepare` once, then `step` at will.

    Args:
      program: jitted function (state, batch) -> (state, loss, ...).
      shapes: abstract state, a pair of (variables, the rest). Variables start as `cells.start`, the rest as zeros.
      batch: arrays, the same in every step.
    """

    def __init__(self, program, shapes, batch):
        """Nothing is compiled, and no array is created."""
        self.program, self.shapes, self.batch, self.state = program, shapes, batch, None
        hits = self.hits = []
        jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if "cache_hits" in event else None)

    def prepare(self):
        """Trace, lower and compile the program. Yield a dict with the time of each phase."""
        jax.clear_caches()  # so that the traces made for the shapes are not reused
        self.hits.clear()
        traced, seconds = _timed(lambda: self.program.trace(self.shapes, self.batch))
        yield {"phase": "trace", "seconds": seconds, **self.facts(traced.jaxpr)}
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

    def facts(self, jaxpr):
        """Return a dict that is added to the record of the trace."""
        return {}

    def step(self):
        """Take one training step, wait for its end, and return the loss before the update."""
        if self.state is None:
            self.state = self.start()
        self.state, loss = self.compiled(self.state, self.batch)
        jax.block_until_ready(self.state)
        return float(loss)

    def start(self):
        """Return the state before the first step."""
        variables, rest = self.shapes
        return start(variables), jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), rest)


def start(variables):
    """Return the first values of abstract variables: those of `cells.start`."""
    leaves: dict = flatten_dict(variables)

    def name(path):
        gates = path[-1].endswith("kernel") and (*path[:-1], "recurrent_kernel") in leaves
        return "gates" if gates else path[-1]

    return unflatten_dict({path: jnp.array(cells.start(name(path), leaf.shape)) for path, leaf in leaves.items()})


class Program(JaxProgram):
    """A cell's program."""

    def __init__(self, cell):
        self.cell = cell
        if cell.kind == "stage":
            model, shape = stage(cell)
            batch = jax.ShapeDtypeStruct(shape, jnp.float32)
            super().__init__(jax.jit(_gradients_of(model)), abstract_variables(model, batch), batch)
        else:
            super().__init__(*training(network(cell), jax.tree.map(jnp.asarray, cells.images(cell.batch))))


def abstract_variables(model, x):
    """Return the shapes of a model's variables."""
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)


def training(model, batch, rate=cells.LEARNING_RATE, auxiliary=0.0, options=None):
    """Return (training step, jitted with compiler options; abstract state; batch): the arguments of `JaxProgram`."""
    variables = abstract_variables(model, batch[0])
    optimizer = optax.sgd(rate, cells.MOMENTUM)
    shapes = (
        variables,
        (
            jax.eval_shape(optimizer.init, variables["params"]),
            jax.ShapeDtypeStruct((), jnp.int32),
        ),
    )
    step = training_step(model, optimizer, auxiliary)
    return jax.jit(step, donate_argnums=0, compiler_options=options), shapes, batch


def _timed(function: Callable):
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def training_step(model, optimizer, auxiliary=0.0):
    """Return a function (state, (inputs, labels)) -> (state, loss); state is (variables, (optimizer state, steps)).

    `auxiliary`: weight of the losses of auxiliary heads, for models that return (logits, auxiliary logits, ...).
    """

    def step(state, batch):
        variables, (optimizer_state, count) = state
        rngs = {"dropout": jax.random.fold_in(jax.random.key(0), count)}

        def loss_of(params):
            outputs, new = model.apply(
                {**variables, "params": params}, batch[0], train=True, mutable=["batch_stats"], rngs=rngs
            )
            logits, *others = outputs if isinstance(outputs, tuple) else (outputs,)
            return _loss(logits, batch[1]) + sum(auxiliary * _loss(other, batch[1]) for other in others), new

        (loss, new), gradients = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
        updates, optimizer_state = optimizer.update(gradients, optimizer_state)
        params = optax.apply_updates(variables["params"], updates)
        return ({"params": params, **new}, (optimizer_state, count + 1)), loss

    return step


def _loss(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels).mean()


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
