"""One step of training, and one of evaluation, as pure functions of any task. `parallel` places them on devices."""

import jax
import jax.numpy as jnp
import optax

from deepjax import optimizers
from deepjax.data import view
from deepjax.trace import call_arguments
from deepjax.training.freezing import keep_moments


def train_step(
    state,
    batch,
    key,
    *,
    model,
    task,
    optimizer,
    schedule,
    ema=0.0,
    updates_before=lambda step: step,
    frozen_moments=None,
    axis_name=None,
):
    """Compute the loss and its gradient on a batch, and update the state.

    Args:
      state: `TrainState`.
      batch: a dict as the task takes it, with "mask" (bool [batch]): rows whose mask is False are padding and do not
        count.
      key: the run's PRNG key. The step's own keys are folded from it by the step number.
      model: a Linen module, called with those of `train` and `mask` that it takes.
      task: what is learned; see `deepjax.tasks`.
      optimizer: an Optax transformation.
      schedule: updates -> learning rate, for the metrics only.
      ema: decay per update of the parameters' moving average; 0 means none.
      updates_before: steps -> updates that they make, as the optimizer counts them (`optimizers.Times`).
      frozen_moments: {pattern: updates} from `freezing.frozen_moments`, or None: batch norms with these names use
        their running moments, and keep them, for that many updates.
      axis_name: name of the mapped axis over which the batch is split, if there is one. Gradients and metrics are then
        those of the whole batch; batch statistics are those of replica 0, as with PyTorch's DataParallel.

    Returns:
      (TrainState, metrics). The metrics are of the whole batch, before the update: the task's means, such as "loss",
      and "count" (predictions), "grad_norm" (before clipping), "learning_rate".
    """
    key = jax.random.fold_in(key, state.step)
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    count = updates_before(state.step)
    frozen = keep_moments(frozen_moments, count)
    loss_of = loss_function(state, batch, key, model, task, axis_name, frozen)
    gradients, batch_stats, metrics = _gradients(loss_of, state.params, axis_name)
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        gradients,
        state.opt_state,
        state.params,
        value=metrics["loss"],
        grad=gradients,
        value_fn=_whole_loss(loss_of, axis_name),  # for a line search
        grad_fn=lambda params, _: _gradients(loss_of, params, axis_name)[0],  # for SAM, with the same random numbers
    )
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    rate = schedule(count) * optimizers.rate_scale(state.opt_state)
    metrics |= {"grad_norm": optax.tree.norm(gradients), "learning_rate": jnp.asarray(rate, jnp.float32)}
    averaged = _moving_average(state.ema, params, ema, updates_before(step) > count)
    return state.replace(step=step, params=params, batch_stats=batch_stats, opt_state=opt_state, ema=averaged), metrics


def loss_function(state, batch, key, model, task, axis_name, frozen):
    """Return params -> (this device's share of the mean loss, (batch statistics, sums of metrics, whole count)).

    The arguments are those of `train_step`; `key` is the step's own, `frozen` what `freezing.keep_moments` returns.
    """
    inputs, targets = task.prepare(batch, key)
    rngs = {"dropout": jax.random.fold_in(key, 1)}

    def loss_of(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        with frozen():
            outputs, updated = apply_model(
                model, variables, inputs, batch["mask"], train=True, mutable=["batch_stats"], rngs=rngs
            )
        sums = task.measure(outputs, targets, batch["mask"])
        count = jnp.maximum(_total(sums.pop("count"), axis_name), 1)
        return sums["loss"] / count, (updated.get("batch_stats", state.batch_stats), sums, count)

    return loss_of


def _gradients(loss_of, params, axis_name):
    """Return (gradients, new batch statistics, metrics) of the whole batch, over all devices."""
    (loss, (batch_stats, sums, count)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    metrics = {name: _total(value, axis_name) / count for name, value in sums.items()}
    if axis_name is not None:
        gradients, loss = jax.lax.psum((gradients, loss), axis_name)
        batch_stats = _of_replica_0(batch_stats, axis_name)
    return gradients, batch_stats, metrics | {"loss": loss, "count": count}


def _whole_loss(loss_of, axis_name):
    """Return params -> loss of the whole batch. Its gradient is also that of the whole batch; a psum's is not."""

    def forward(params):
        (loss, _), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        return (loss, gradient) if axis_name is None else jax.lax.psum((loss, gradient), axis_name)

    whole = jax.custom_vjp(lambda params: forward(params)[0])
    whole.defvjp(forward, lambda gradient, scale: (jax.tree.map(lambda g: scale * g, gradient),))
    return whole


def _moving_average(average, params, decay, updated):
    """Return the exponential moving average; between two updates neither the parameters nor the average move."""
    if not decay:
        return average
    rate = jnp.where(updated, 1 - decay, 0.0)
    # Written so that the average of equal numbers, such as frozen parameters, is bit-identical to them.
    return jax.tree.map(lambda new, old: old + rate * (new - old), params, average)


def eval_step(variables, batch, *, model, task, views=1):
    """Return the task's rows for a batch, and its "mask". Rows whose mask is False are padding; ignore their values.

    `views`: above 1, predictions are averaged over so many views of each image (`data.view`).
    """

    def outputs_of(batch):
        inputs, _ = task.prepare(batch)
        return apply_model(model, variables, inputs, batch["mask"], train=False)

    def outputs_of_view(index):
        return outputs_of(batch | {"image": view(batch["image"], index, views)})

    several = views > 1
    outputs = task.average_views(jax.lax.map(outputs_of_view, jnp.arange(views))) if several else outputs_of(batch)
    return task.rows(outputs, batch) | {"mask": batch["mask"]}


def apply_model(model, variables, inputs, mask, *, train, **options):
    """Call `model.apply` with those of `train` and `mask` (of the real rows) that the model takes."""
    return model.apply(variables, inputs, **call_arguments(model, train=train, mask=mask), **options)


def _total(value, axis_name):
    return value if axis_name is None else jax.lax.psum(value, axis_name)


def _of_replica_0(tree, axis_name):
    first = jax.lax.axis_index(axis_name) == 0
    return jax.tree.map(lambda x: jax.lax.psum(jnp.where(first, x, 0), axis_name), tree)
