"""The products that can be layers, in the operations of `jax.lax` and of `deepjax.functional`."""

import math
from dataclasses import dataclass, replace

import jax.numpy as jnp


@dataclass(frozen=True)
class Product:
    """A matrix product, a convolution, or a look-up in a table."""

    kind: str  # "dot", "convolution" or "embedding"
    operands: tuple[int, ...]  # those that can be the kernel
    outputs: dict[int, tuple[int, ...]]  # operand: its axes of output features
    batch: dict[int, tuple[int, ...]]  # operand: its axes each entry of which has a separate kernel
    shapes: dict[int, tuple[int, ...]]
    kernel: int = 0  # the operand that is the kernel

    def of(self, kernel) -> "Product":
        """Return the product with this operand as its kernel."""
        return replace(self, kernel=kernel)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel."""
        return self.shapes[self.kernel]

    @property
    def free(self) -> int:
        """Number of axes of output features."""
        return len(self.outputs[self.kernel])

    @property
    def features(self) -> int:
        """Number of output features."""
        return math.prod(self.shape[axis] for axis in self.outputs[self.kernel])

    @property
    def fan_in(self) -> int:
        """Number of inputs that one output is a weighted sum of; 1 for a look-up."""
        if self.kind == "embedding":
            return 1
        separate = math.prod(self.shape[axis] for axis in self.batch[self.kernel])
        return math.prod(self.shape) // max(1, self.features * separate)

    def matrix(self, kernel):
        """Reshape a kernel to [..., fan_in, features]. For a look-up: [rows, features]."""
        batch, outputs = self.batch[self.kernel], self.outputs[self.kernel]
        inputs = tuple(axis for axis in range(kernel.ndim) if axis not in (*batch, *outputs))
        ordered = jnp.transpose(kernel, (*batch, *inputs, *outputs))
        return ordered.reshape(*(kernel.shape[axis] for axis in batch), -1, self.features)


def product(eqn) -> Product | None:
    """Return the product that an equation is, or None. Any operand of it may be the kernel."""
    name, shapes = eqn.primitive.name, {i: v.aval.shape for i, v in enumerate(eqn.invars)}
    if name == "dot_general":
        (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
        taken = {0: (*left, *left_batch), 1: (*right, *right_batch)}
        outputs = {i: tuple(axis for axis in range(len(shapes[i])) if axis not in taken[i]) for i in (0, 1)}
        return Product("dot", (1, 0), outputs, {0: tuple(left_batch), 1: tuple(right_batch)}, shapes)
    if name == "conv_general_dilated":
        outputs = (eqn.params["dimension_numbers"].rhs_spec[0],)
        return Product("convolution", (1,), {1: outputs}, {1: ()}, shapes)
    if name in ("conv_forward", "conv_input_gradient"):
        last = len(shapes[1]) - 1
        outputs = (last if name == "conv_forward" else last - 1,)
        return Product("convolution", (1,), {1: outputs}, {1: ()}, shapes)
    if name == "gather":
        rows = (*eqn.params["dimension_numbers"].collapsed_slice_dims,)
        rank = len(shapes[0])
        if rank < 2 or rows != (0,) or eqn.params["slice_sizes"][1:] != shapes[0][1:]:
            return None
        return Product("embedding", (0,), {0: tuple(range(1, rank))}, {0: ()}, shapes)
    return None
