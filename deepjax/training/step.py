"""One step of training and of evaluation, as pure functions. Where they run is `sharding`'s business."""

import inspect

import jax
import jax.numpy as jnp
import optax

from deepjax import functional


def train_step(
    state,
    batch,
    key,
    *,
    model,
    optimizer,
    schedule,
    preprocess,
    smoothing=0.0,
    ema=0.0,
    accumulate=1,
    axis_name=None,
):
    """Loss, gradients, update.

    Args:
      state: `TrainState`.
      batch: {"image": [batch, ...] as stored, "label": int32 [batch], "mask": bool [batch]}; rows whose mask is False
        are padding, and count for nothing.
      key: the run's key; the step's own keys are folded from it by the step number.
      model: a Linen module called as `model(x, train=...)`, given `mask=` too where it takes it.
      optimizer: an Optax transformation.
      schedule: updates -> learning rate, for the metrics only.
      preprocess: (key, image) -> float input of the model: augmentation and standardization.
      smoothing: of the labels.
      ema: decay per update of the parameters' moving average; 0: none.
      accumulate: batches per update, as the optimizer was told.
      axis_name: the mapped axis over which the batch is split, if it is: gradients and metrics are then those of the
        whole batch, batch statistics those of replica 0, as with PyTorch's DataParallel.

    Returns:
      (TrainState, metrics): metrics of the whole batch, before the update: loss (mean, nats), accuracy (fraction),
      count (examples), grad_norm (before clipping), learning_rate.
    """
    key = jax.random.fold_in(key, state.step)
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    gradients, batch_stats, metrics = _gradients(state, batch, key, model, preprocess, smoothing, axis_name)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    averaged = state.ema
    if ema:
        # Between two updates the parameters stand still, and so must their average.
        rate = jnp.where(step % accumulate == 0, 1 - ema, 0.0)
        averaged = optax.incremental_update(params, state.ema, rate)
    metrics |= {
        "grad_norm": optax.tree.norm(gradients),
        "learning_rate": jnp.asarray(schedule(state.step // accumulate), jnp.float32),
    }
    state = state.replace(step=step, params=params, batch_stats=batch_stats, opt_state=opt_state, ema=averaged)
    return state, metrics


def _gradients(state, batch, key, model, preprocess, smoothing, axis_name):
    """(gradients, new batch statistics, {"loss", "accuracy", "count"}), of the whole batch over all devices."""
    image = preprocess(jax.random.fold_in(key, 0), batch["image"])
    label, mask = batch["label"], batch["mask"]
    count = jnp.maximum(_sum(mask, axis_name), 1)

    def loss_of(params):
        logits, updated = apply_model(
            model,
            {"params": params, "batch_stats": state.batch_stats},
            image,
            mask,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.fold_in(key, 1)},
        )
        losses = jnp.where(mask, functional.cross_entropy(logits, label, smoothing=smoothing), 0)
        return losses.sum() / count, (logits, updated.get("batch_stats", state.batch_stats))

    (loss, (logits, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    if axis_name is not None:
        gradients, loss = jax.lax.psum((gradients, loss), axis_name)
        batch_stats = _of_replica_0(batch_stats, axis_name)
    accuracy = _sum(mask & (logits.argmax(-1) == label), axis_name) / count
    return gradients, batch_stats, {"loss": loss, "accuracy": accuracy, "count": count}


def eval_step(variables, batch, *, model, preprocess):
    """What evaluation needs of each row of a batch.

    Its loss (nats), its likeliest classes (up to five, best first), its label and mask. Rows whose mask is False are
    padding; their values mean nothing.
    """
    image = preprocess(None, batch["image"])
    logits = apply_model(model, variables, image, batch["mask"], train=False).astype(jnp.float32)
    return {
        "label": batch["label"],
        "mask": batch["mask"],
        "loss": functional.cross_entropy(logits, batch["label"]),
        "classes": jax.lax.top_k(logits, min(5, logits.shape[-1]))[1],
    }


def apply_model(model, variables, x, mask, **call):
    """`model.apply`, handing on the mask of real rows where the model takes one."""
    if "mask" in inspect.signature(type(model).__call__).parameters:
        call["mask"] = mask
    return model.apply(variables, x, **call)


def _sum(mask, axis_name):
    count = mask.sum().astype(jnp.float32)
    return count if axis_name is None else jax.lax.psum(count, axis_name)


def _of_replica_0(tree, axis_name):
    first = jax.lax.axis_index(axis_name) == 0
    return jax.tree.map(lambda x: jax.lax.psum(jnp.where(first, x, 0), axis_name), tree)
