"""One abstract forward pass of a Linen model as a jaxpr that says which module every equation belongs to.

Every method call stands in a named scope, which equations keep, and its output passes a `name` equation that says what
was called. That goes through scans, rematerialization, vmap, and `nn.jit`, which traces equal modules only once.
"""

import inspect
import json
import re
from typing import Any, NamedTuple

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from deepjax.errors import InputError

MARK = "deepjax.summary "  # names of scopes and of outputs start so


class Call(NamedTuple):
    """A module's call."""

    kind: str  # the class's name
    output: tuple[int, ...]  # shape of one example's output (of the last array, where there are several)
    own: dict[str, tuple[int, ...]]  # shapes of the parameters that the module itself owns, inside of scans


def trace(model, shape, dtype, call):
    """(jaxpr of one inference call on a batch of one example, shapes of the variables).

    The jaxpr's last input is the batch, those before it are the variables.

    Raises:
      InputError: an input that the model does not take.
    """
    if "train" in inspect.signature(type(model).__call__).parameters:
        call = {"train": False, **call}
    keys = {"params": jax.random.key(0)}  # the stream that stands in for all others

    def init():
        return model.init(keys, jnp.zeros((1, *shape), dtype), **call)

    def forward(variables, x):
        with nn.intercept_methods(_marker()):
            y, _ = model.apply(variables, x, rngs=keys, mutable=nn.DenyList("intermediates"), **call)
        return [leaf for leaf in jax.tree.leaves(y) if isinstance(leaf, jax.Array)]

    try:
        variables = nn.meta.unbox(jax.eval_shape(init))
        jaxpr = jax.make_jaxpr(forward)(variables, jax.ShapeDtypeStruct((1, *shape), dtype)).jaxpr
    except InputError:
        raise
    except (TypeError, ValueError, flax.errors.FlaxError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"the model does not take an input of shape {tuple(shape)}: {reason}") from error
    return jaxpr, variables


def _marker():
    running = []  # paths of the modules that are being called

    def mark(next_method, args, kwargs, context):
        module, path = context.module, context.module.path
        if context.method_name == "setup":
            return next_method(*args, **kwargs)
        outermost = path not in running  # a module may call methods of its own
        scope = _scope(path, running[-1] if running else None)
        running.append(path)
        try:
            with jax.named_scope(scope):
                output = next_method(*args, **kwargs)
                return _named(output, module) if outermost else output
        finally:
            running.pop()

    return mark


def _scope(path, caller):
    """A path relative to the caller's, so that it holds wherever a jitted caller is called next; else "/" and all."""
    if caller is None or path[: len(caller)] != caller:
        return f"{MARK}</{'/'.join(path)}>"
    return f"{MARK}<{'/'.join(path[len(caller) :])}>"


def _named(output, module):
    own = {name: leaf.shape for name, leaf in _own(module).items() if hasattr(leaf, "shape")}
    leaves, tree = jax.tree.flatten(output)
    arrays = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array) and not _is_key(leaf)]
    shape = leaves[arrays[-1]].shape[1:] if arrays else ()
    name = MARK + json.dumps([type(module).__name__, shape, own])
    if not arrays:  # the call leaves its mark on a number that nobody takes
        checkpoint_name(jnp.zeros(()), name)
        return output
    leaves[arrays[-1]] = checkpoint_name(leaves[arrays[-1]], name)
    return jax.tree.unflatten(tree, leaves)


def _own(module) -> dict[str, Any]:
    return nn.meta.unbox(module.variables.get("params", {}))


def _is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


def read_mark(eqn):
    """The `Call` whose output passes this equation, which belongs to the called module; or None."""
    name = str(eqn.params["name"]) if eqn.primitive.name == "name" else ""
    if not name.startswith(MARK):
        return None
    kind, output, own = json.loads(name.removeprefix(MARK))
    return Call(kind, tuple(output), {name: tuple(shape) for name, shape in own.items()})


def owner(eqn, enclosing):
    """Path of the module in whose call an equation is; a jaxpr's equations know only of calls within that jaxpr."""
    path = enclosing
    for scope in re.findall(f"{re.escape(MARK)}<(.*?)>", str(eqn.source_info.name_stack)):
        names = tuple(filter(None, scope.split("/")))
        path = names if scope.startswith("/") else path + names
    return path
