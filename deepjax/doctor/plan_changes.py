"""What is tried in data, loss and plan against a cause: functions of a subject that return a changed subject."""

import jax
import numpy as np
import optax

from deepjax.doctor.subject import Subject


def standardized_inputs(subject: Subject) -> Subject:
    """Give every input feature (of images: every channel) mean 0 and standard deviation 1 over the examples."""
    return subject.with_(inputs=jax.tree.map(_standardized, subject.inputs))


def standardized_targets(subject: Subject) -> Subject:
    """Give every target mean 0 and standard deviation 1 over the examples."""
    return subject.with_(targets=jax.tree.map(lambda t: _standardized(t.astype(np.float32)), subject.targets))


def standardized_columns(large):
    """Do the same with some of the numbers of each example's targets, one array: those that `large` names by index."""

    def scaled(targets):
        flat = np.array(targets, np.float32).reshape(len(targets), -1)
        flat[:, large] = _standardized(flat[:, large])
        return flat.reshape(targets.shape)

    return lambda subject: subject.with_(targets=jax.tree.map(scaled, subject.targets))


def _standardized(array):
    if array.dtype.kind in "iub" and array.dtype != np.uint8:  # indices, such as words
        return array
    x = array.astype(np.float32)
    axes = tuple(range(x.ndim - 1)) if x.ndim > 1 else (0,)
    deviation = x.std(axes)
    return (x - x.mean(axes)) / np.where(deviation > 0, deviation, 1)


def scaled_rate(factor: float):
    """Multiply every update of the planned optimizer."""
    return lambda subject: subject.with_(optimizer=optax.chain(subject.optimizer, optax.scale(factor)))


def with_adam(rate: float):
    """Replace the optimizer by Adam."""
    return lambda subject: subject.with_(optimizer=optax.adam(rate))


def clipped(subject: Subject) -> Subject:
    """Clip the norm of the gradient to 1."""
    return subject.with_(optimizer=optax.chain(optax.clip_by_global_norm(1.0), subject.optimizer))


def with_decay(factor: float, last: str | None = None):
    """Multiply the weight decay of the optimizer: of all parameters, or of those whose path ends with a name.

    The optimizer sees these parameters multiplied by the factor.
    """

    def hidden(params):
        def hide(path, leaf):
            return factor * leaf if last in (None, path[-1].key) else leaf

        return jax.tree_util.tree_map_with_path(hide, params)

    def change(subject):
        optimizer = optax.with_extra_args_support(subject.optimizer)

        def update(updates, state, params=None, **extra):
            return optimizer.update(updates, state, hidden(params), **extra)

        return subject.with_(optimizer=optax.GradientTransformationExtraArgs(optimizer.init, update))

    return change


def more_epochs(times: int):
    """Train for so many times the planned epochs."""
    return lambda subject: subject.with_(epochs=times * (subject.epochs or 1))


def batches_of(size: int):
    """Set the batch size."""
    return lambda subject: subject.with_(batch_size=min(size, subject.examples))


def mean_loss(subject: Subject) -> Subject:
    """Divide a loss that sums over the examples by their number."""
    loss = subject.loss
    return subject.with_(loss=lambda p, t: loss(p, t) / len(jax.tree.leaves(p)[0]))


def shaped_targets(subject: Subject) -> Subject:
    """Give the targets the shape of the predictions before the loss."""
    loss = subject.loss
    return subject.with_(loss=lambda p, t: loss(p, t.reshape(p.shape)))
