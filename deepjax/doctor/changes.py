"""What is tried in a model against a cause: functions of a subject that return a changed subject."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from deepjax import init_from_data, layers
from deepjax.doctor.head import Head, splitter
from deepjax.doctor.subject import Subject, linen
from deepjax.errors import InputError
from deepjax.trace import around_calls, normalizes_by_batch
from deepjax.trace.layers import AFFINE

HEAD = "new_output"  # name of the parameters of a new last layer
DROPOUTS = (nn.Dropout, layers.Dropout, layers.SpatialDropout, layers.AlphaDropout)


def without_dropout(subject: Subject) -> Subject:
    """Skip every dropout of a Linen model."""
    return without_modules(lambda module, x: isinstance(module, DROPOUTS))(subject)


def without_modules(chosen):
    """Skip the modules of a Linen model for which `chosen`, a function (module, its input) -> bool, is true."""

    def rule(module, run, args, kwargs):
        return args[0] if args and chosen(module, args[0]) else run(*args, **kwargs)

    return lambda subject: _under(subject, rule)


def _behind_layers(last, change):
    """Change the output of every layer of a Linen model, but not of the last one, whose path is given.

    `change` is a function (output, input of the layer) -> new output.
    """

    def rule(module, run, args, kwargs):
        y = run(*args, **kwargs)
        inner = between(module) and "/".join(module.path) != last
        return change(y, args[0]) if inner and isinstance(y, jax.Array) else y

    return lambda subject: _under(subject, rule)


def between(module) -> bool:
    """Return whether a module is a layer that can be changed alone: the parts of a recurrent cell cannot."""
    return isinstance(module, AFFINE) and not isinstance(module.parent, nn.RNNCellBase)


def with_relu(last: str):
    """Add a ReLU behind every layer but the last one."""
    return _behind_layers(last, lambda y, x: nn.relu(y))


def with_layer_norm(last: str):
    """Give the outputs of every layer but the last one mean 0 and variance 1 over the features of each example."""
    return _behind_layers(last, lambda y, x: jax.nn.standardize(y, epsilon=1e-5))


def with_skips(last: str, layers: int):
    """Add the input to the output of every layer that keeps its shape, divided by the square root of `layers`."""
    return _behind_layers(last, lambda y, x: x + y / np.sqrt(layers) if y.shape == x.shape else y)


def without_layers(last: str):
    """Leave out every layer that keeps the shape of its input."""
    return _behind_layers(last, lambda y, x: x if y.shape == x.shape else y)


def wider(last: str, narrow: int, units: int):
    """Give every layer of a Linen model with at most `narrow` features `units` features, but not the last layer."""

    def rule(module, run, args, kwargs):
        features = getattr(module, "features", None)
        inner = between(module) and "/".join(module.path) != last
        if not inner or not isinstance(features, int) or features > narrow:
            return run(*args, **kwargs)
        object.__setattr__(module, "features", units)  # for this call only: a field of a frozen dataclass
        try:
            return run(*args, **kwargs)
        finally:
            object.__setattr__(module, "features", features)

    return lambda subject: _under(subject, rule)


def positive_output(subject: Subject) -> Subject:
    """Put a softplus behind the outputs, which makes them positive."""
    return _behind_output(subject, nn.softplus)


def scaled_output(factor: float):
    """Multiply the outputs."""
    return lambda subject: _behind_output(subject, lambda y: factor * y)


def _behind_output(subject, function):
    def apply(*arguments):
        out, state = subject.apply(*arguments)
        return jax.tree.map(function, out), state

    return subject.with_(apply=apply)


def batch_norm_modes(subject: Subject) -> Subject:
    """Let every `nn.BatchNorm` use the moments of the batch in training, and its running moments in evaluation."""
    changed = {}

    def rule(module, run, args, kwargs):
        given = isinstance(module, nn.BatchNorm) and module.use_running_average is not None
        if not given or module.is_initializing():  # the twin takes its mode as an argument
            return run(*args, **kwargs)
        return _normalized(module, args[0], changed["train"])

    def apply(variables, inputs, train, key):
        changed["train"] = train
        with around_calls(rule):
            return subject.apply(variables, inputs, train, key)

    return subject.with_(apply=apply)


def batch_norm_momentum(momentum: float):
    """Give every `nn.BatchNorm` another momentum."""

    def rule(module, run, args, kwargs):
        other = isinstance(module, nn.BatchNorm) and module.momentum != momentum
        if not other or module.is_initializing():  # the twin has the new momentum
            return run(*args, **kwargs)
        return _normalized(module, args[0], normalizes_by_batch(module, args, kwargs), momentum=momentum)

    return lambda subject: _under(subject, rule)


def _normalized(module, x, train, **changed):
    """Call a batch normalization in the mode `train`, with some of its fields changed."""
    twin = module.clone(parent=None, name=None, use_running_average=None, **changed)
    if not train:
        return twin.apply(module.variables, x, use_running_average=True)
    y, new = twin.apply(module.variables, x, use_running_average=False, mutable=["batch_stats"])
    for name, value in new["batch_stats"].items():
        module.put_variable("batch_stats", name, value)
    return y


def _under(subject, rule):
    """Return the subject with a rule around the calls of its modules."""
    init, apply = subject.init, subject.apply

    def ruled_init(key):
        with around_calls(rule):
            return init(key)

    def ruled_apply(*args):
        with around_calls(rule):
            return apply(*args)

    return subject.with_(init=ruled_init, apply=ruled_apply)


def with_state(subject: Subject, name: str, state) -> Subject:
    """Set a collection of the initial variables, such as the moments of batch normalization."""

    def init(key):
        return {**subject.init(key), name: state}

    return subject.with_(init=init)


def scaled_weights(subject: Subject, key, zero_biases: bool = False) -> Subject:
    """Initialize a Linen model from data, so that every layer's output has variance 1 (LSUV)."""
    if subject.module is None:
        raise InputError("only Linen models are initialized from data")
    inputs = jax.tree.map(jnp.asarray, subject.rows(slice(0, 256))[0])
    call = {name: not value for name, value in subject.call}  # evaluation: no dropout
    variables = init_from_data.lsuv(subject.module, jax.random.fold_in(key, 11), inputs, **call)
    params = nn.meta.unbox(variables["params"])
    params = _zeroed(params) if zero_biases else params

    def init(key):
        variables = subject.init(key)
        inner = HEAD in variables["params"]  # a new output has been added to the model
        return {**variables, "params": {**variables["params"], "model": params} if inner else params}

    return subject.with_(init=init)


def drawn_weights(subject: Subject, key, rows) -> Subject:
    """Draw all kernels again, orthogonal, with the variance 2 / fan_in under ReLU (He et al. 2015), else 1 / fan_in.

    Those of embeddings get the variance 1 / features. Biases become 0. This works for every model.

    Args:
      subject: the subject.
      key: PRNG key.
      rows: of its measurement.
    """
    gains = {path: _gain(row) for row in rows for path in row.parameters}

    def draw(path, leaf):
        name = "/".join(str(part.key) for part in path)
        if name.rpartition("/")[2] == "bias":
            return jnp.zeros_like(leaf)
        if name not in gains:
            return leaf
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        scale = gains[name] * np.sqrt(max(leaf.shape[-1], leaf.size // leaf.shape[-1]))
        return nn.initializers.orthogonal(scale)(own, leaf.shape, leaf.dtype)

    def init(key):
        variables = subject.init(key)
        return {**variables, "params": jax.tree_util.tree_map_with_path(draw, variables["params"])}

    return subject.with_(init=init)


def _gain(row):
    if row.kind == "embedding":
        return row.features**-0.5
    return ((2 if "relu" in row.activation else 1) / max(row.fan_in, 1)) ** 0.5


def _zeroed(params):
    """Set every bias to 0."""

    def change(path, leaf):
        return jnp.zeros_like(leaf) if path[-1].key == "bias" else leaf

    return jax.tree_util.tree_map_with_path(change, params)


def new_output(subject: Subject, head: Head, facts, keep: bool) -> Subject:
    """Give a model the output and the loss that fit its targets.

    Args:
      subject: the subject.
      head: of its model, before other changes.
      facts: of its targets.
      keep: whether the last layer stays, and only what follows it is replaced; else there is a new last layer.
    """
    units, loss, _ = fitting_loss(facts, subject.targets)
    split, init = splitter(subject), subject.init
    goal = jax.tree.leaves(subject.targets)[0].shape
    positions = facts.kind == "classes" and len(goal) > 1 and head.features[:-1] == goal[1:]  # one output for each

    def with_new_layer(key):
        variables = init(key)
        fan_in = int(np.prod(head.features[-1:] if positions else head.features))
        kernel = jax.random.normal(jax.random.fold_in(key, 12), (fan_in, units)) / np.sqrt(fan_in)
        params = {"model": variables["params"], HEAD: {"kernel": kernel, "bias": jnp.zeros(units)}}
        return {**variables, "params": params}

    def apply_new(variables, inputs, train, key):
        params = variables["params"]
        x, _, state = split({**variables, "params": params["model"]}, inputs, train, key)
        x = x if positions else x.reshape(len(x), -1)
        y = x @ params[HEAD]["kernel"]
        return y + params[HEAD]["bias"].reshape([1] * (y.ndim - 1) + [-1]), state if train else {}

    def apply_kept(variables, inputs, train, key):
        _, z, state = split(variables, inputs, train, key)
        if facts.kind != "classes" and np.prod(z.shape[1:]) == np.prod(goal[1:]):
            z = z.reshape(len(z), *goal[1:])  # an output for every target
        elif facts.kind != "labels" and z.ndim > 2 and len(goal) <= 2:
            z = z.mean(tuple(range(1, z.ndim - 1)))  # what global average pooling did
        return z, state if train else {}

    if keep:
        return subject.with_(apply=apply_kept, loss=loss)
    return subject.with_(init=with_new_layer, apply=apply_new, loss=loss)


def with_codes(values, shape):
    """Add to the outputs an array that is learned for every value of some columns of the inputs.

    Args:
      values: {column of the inputs [examples, columns]: its values, sorted}.
      shape: of the outputs, without the batch axis.
    """

    def change(subject):
        def init(key):
            variables = subject.init(key)
            tables = {str(column): jnp.zeros((len(v), *shape)) for column, v in values.items()}
            return {**variables, "params": {"model": variables["params"], "codes": tables}}

        def apply(variables, inputs, train, key):
            params, x = variables["params"], jax.tree.leaves(inputs)[0]
            out, state = subject.apply({**variables, "params": params["model"]}, inputs, train, key)
            found = [params["codes"][str(j)][jnp.searchsorted(v, x[:, j])] for j, v in values.items()]
            return jax.tree.map(lambda y: y + sum(found), out), state

        return subject.with_(init=init, apply=apply)

    return change


def flattened(subject: Subject) -> Subject:
    """Give a Linen model inputs of one position, which has the features of all positions; layers are drawn again."""

    def flat(x):
        return x.reshape(len(x), *[1] * (x.ndim - 2), -1)

    if subject.module is None:
        raise InputError("only the layers of Linen models take the size of their inputs")
    inputs = jax.tree.map(flat, subject.inputs)
    init, apply, *_ = linen(subject.module, None, inputs)
    return subject.with_(inputs=inputs, init=init, apply=apply)


def fitting_loss(facts, targets):
    """Return (number of outputs, loss of these and the targets, what it expects) for targets of this kind."""
    shape = jax.tree.leaves(targets)[0].shape
    outputs = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    if facts.kind == "classes":
        return max(facts.classes, 2), _cross_entropy_of_index, "logit"
    if facts.kind in ("one-hot", "shares"):
        return shape[-1], lambda z, t: optax.softmax_cross_entropy(z, t.astype(z.dtype)).mean(), "logit"
    if facts.kind in ("binary", "labels"):
        return outputs, _binary_cross_entropy, "logit"
    return outputs, lambda p, t: jnp.mean((p - t.reshape(p.shape)) ** 2), "number"


def _cross_entropy_of_index(z, t):
    t = t.reshape(z.shape[:-1]).astype(jnp.int32)  # a negative number stands for "no label"
    losses = optax.softmax_cross_entropy_with_integer_labels(z, jnp.maximum(t, 0))
    return losses.mean(where=t >= 0)


def _binary_cross_entropy(z, t):
    if z.size != t.size:  # two outputs for one binary target
        return _cross_entropy_of_index(z, t)
    return optax.sigmoid_binary_cross_entropy(z, t.reshape(z.shape).astype(z.dtype)).mean()
