"""Batch norms that cannot be folded are left alone, and named with the reason."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from deepjax import layers
from deepjax.transforms import fold_batch_norm
from transforms.folding import KEY, Block, Together, assert_folds, draw, images, repeated, scanned


class OutputUsedTwice(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.Dense(4, name="dense")(x)
        return y + nn.BatchNorm(True, name="norm")(y)


class SharedLayer(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(4, name="dense")
        return nn.BatchNorm(True, name="norm")(dense(nn.relu(dense(x))))


class SharedNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        norm = nn.BatchNorm(True, name="norm")
        return norm(nn.Dense(4, name="dense2")(norm(nn.Dense(4, name="dense")(x))))


class SharedBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block)(name="block")
        return block(block(x))


class UnusedOutput(nn.Module):
    @nn.compact
    def __call__(self, x):
        nn.BatchNorm(True, name="norm")(nn.Dense(4, name="unused")(x))
        return nn.Dense(4, name="used")(x)


class TiedKernel(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(4, name="dense")
        y = nn.BatchNorm(True, name="norm")(dense(x))
        return y @ dense.variables["params"]["kernel"].T


class MomentsPerStep(nn.Module):
    """One layer and norm for all steps, but moments of each."""

    @nn.compact
    def __call__(self, x):
        options = {"variable_axes": {"batch_stats": 0}, "variable_broadcast": "params"}
        body = repeated(lambda block, x, _: (block(x), None), **options)
        return body(Block(name="block"), x, None)[0]


class ScannedAlongTheLastAxis(nn.Module):
    """Four blocks of four features: leading and last axis look alike."""

    @nn.compact
    def __call__(self, x):
        body = scanned(lambda block, x, _: (block(x), None), {"params": 1, "batch_stats": 1})
        return body(Block(name="block"), x, None)[0]


class Standardized(nn.Dense):
    """A subclass may do anything with its kernel."""

    @nn.compact
    def __call__(self, inputs):
        kernel = self.param("kernel", self.kernel_init, (inputs.shape[-1], self.features))
        return inputs @ (kernel / jnp.linalg.norm(kernel))


class ActivationBetween(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(True, name="norm")(nn.relu(nn.Dense(4, name="dense")(x)))
        return nn.Dense(2, name="after")(nn.relu(x))


class OtherAxis(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(True, axis=0, name="norm")(nn.Dense(3, name="dense")(x))


class ActivationInAFunction(nn.Module):
    """The function under remat is not the layer, although Flax makes it a method of the layer."""

    @nn.compact
    def __call__(self, x):
        function = nn.remat(lambda dense, x: nn.relu(dense(x)))
        return nn.BatchNorm(True, name="norm")(function(nn.Dense(4, name="dense"), x))


class NormInALoop(nn.Module):
    """Only the first step normalizes the layer's output."""

    @nn.compact
    def __call__(self, x):
        body = repeated(lambda norm, x, _: (norm(x) + 1, None), variable_broadcast=["params", "batch_stats"])
        return body(nn.BatchNorm(True, name="norm"), nn.Dense(4, name="dense")(x), None)[0]


class LayerInALoop(nn.Module):
    """All steps use the layer, but the norm gets the output of the last one."""

    @nn.compact
    def __call__(self, x):
        body = repeated(lambda dense, x, _: (dense(x), None), variable_broadcast=["params", "batch_stats"])
        return nn.BatchNorm(True, name="norm")(body(nn.Dense(4, name="dense"), x, None)[0])


class LayerInABranch(nn.Module):
    """The other branch gives the norm something else."""

    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(4, name="dense")
        choose = nn.cond if not self.is_initializing() else lambda _, first, second, *args: first(*args)
        y = choose(x.sum() > 0, lambda dense, x: dense(x), lambda dense, x: 2 * x, dense, x)
        return nn.BatchNorm(True, name="norm")(y)


class Weighted(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(True, name="norm")(layers.WeightNorm(nn.Dense(4, name="dense"))(x))


class Subclassed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(True, name="norm")(Standardized(4, name="dense")(x))


LEFT = [  # model, its norm, the reason why it is left
    (OutputUsedTwice(), "norm", "not the output of one Dense or Conv alone"),
    (ActivationBetween(), "norm", "not the output of one Dense or Conv alone"),
    (ActivationInAFunction(), "norm", "not the output of one Dense or Conv alone"),
    (Subclassed(), "norm", "not the output of one Dense or Conv alone"),
    (SharedLayer(), "norm", "dense is called 2 times"),
    (SharedNorm(), "norm", "it is called 2 times"),
    (SharedBlock(), "block/norm", "it is called 2 times"),
    (TiedKernel(), "norm", "its variables, or those of models_{}/dense, are also used elsewhere"),
    (Weighted(), "norm", "are also used elsewhere"),
    (MomentsPerStep(), "block/norm", "not stacked along leading axes as those of models_{}/block/dense"),
    (ScannedAlongTheLastAxis(), "block/norm", "are also used elsewhere"),
    (UnusedOutput(), "norm", "its output is not used"),
    (OtherAxis(), "norm", "not the last axis"),
    (NormInALoop(), "norm", "not the output of one Dense or Conv alone"),
    (LayerInALoop(), "norm", "not the output of one Dense or Conv alone"),
    (LayerInABranch(), "norm", "not the output of one Dense or Conv alone"),
]


def test_what_cannot_be_folded_is_left_and_named():
    model, x = Together(tuple(model for model, _, _ in LEFT)), images(3, 4)
    variables = draw(model, x, seed=2)  # by some seeds every ReLU of a model gives zero
    folding = assert_folds(model, variables, x)
    assert folding.folded == {}
    assert list(folding.left) == [f"models_{i}/{norm}" for i, (_, norm, _) in enumerate(LEFT)]
    for i, (found, (_, _, why)) in enumerate(zip(folding.left.values(), LEFT, strict=True)):
        assert why.format(i) in found
    chex.assert_trees_all_equal(folding.variables, variables)
    scale = [leaf for path, leaf in flatten_dict(variables).items() if "norm" in path and path[0] == "params"]
    assert folding.parameters_left == sum(leaf.size for leaf in scale) > 0


def test_norms_that_inference_does_not_call_are_named():
    class Auxiliary(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.BatchNorm(not train, name="norm")(nn.Dense(4, name="dense")(x))
            if train:
                nn.BatchNorm(False, name="auxiliary")(x)
            return x

    x = images(3, 4)
    variables = jax.jit(lambda: Auxiliary().init(KEY, x, True))()
    folding = fold_batch_norm(Auxiliary(), variables, x)
    assert folding.folded == {"norm": "dense"}
    assert list(folding.left) == ["auxiliary"]
    assert folding.left["auxiliary"] == "inference does not call it"
    assert folding.parameters_left == 8
