"""One step of training and of evaluation, as pure functions. Where they run is `sharding`'s business."""

import inspect

import jax
import jax.numpy as jnp
import optax

from deepjax import functional, optimizers
from deepjax.errors import InputError
from deepjax.training.freezing import keep_moments


def train_step(
    state,
    batch,
    key,
    *,
    model,
    optimizer,
    schedule,
    preprocess,
    mix=None,
    smoothing=0.0,
    ema=0.0,
    accumulate=1,
    kept=None,
    axis_name=None,
):
    """Loss, gradients, update.

    A network with auxiliary heads answers (logits, auxiliary logits, ...) in training. The loss is then that of the
    logits plus `model.auxiliary_weight` times that of each head (Szegedy et al. 2014, section 5); accuracy is the
    logits'.

    Args:
      state: `TrainState`.
      batch: {"image": [batch, ...] as stored, "label": int32 [batch], "mask": bool [batch]}; rows whose mask is False
        are padding, and count for nothing.
      key: the run's key; the step's own keys are folded from it by the step number.
      model: a Linen module called as `model(x, train=...)`, given `mask=` too where it takes it.
      optimizer: an Optax transformation.
      schedule: updates -> learning rate, for the metrics only.
      preprocess: (key, image) -> float input of the model: augmentation and standardization.
      mix: None, or (key, image, label, mask) -> (image, targets [batch, classes]) after `preprocess`: Mixup and CutMix.
        Accuracy then counts the class with the largest share.
      smoothing: of the labels.
      ema: decay per update of the parameters' moving average; 0: none.
      accumulate: batches per update, as the optimizer was told.
      kept: None, or `freezing.kept_moments`'s {pattern: updates}: batch norms so named use their running moments, and
        keep them, for so many updates.
      axis_name: the mapped axis over which the batch is split, if it is: gradients and metrics are then those of the
        whole batch, batch statistics those of replica 0, as with PyTorch's DataParallel.

    Returns:
      (TrainState, metrics): metrics of the whole batch, before the update: loss (mean, nats), accuracy (fraction),
      count (examples), grad_norm (before clipping), learning_rate.
    """
    key = jax.random.fold_in(key, state.step)
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    gradients, batch_stats, metrics, loss_of = _gradients(
        state, batch, key, model, preprocess, mix, smoothing, axis_name, keep_moments(kept, state.step // accumulate)
    )
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        gradients,
        state.opt_state,
        state.params,
        value=metrics["loss"],
        grad=gradients,
        value_fn=_whole_loss(loss_of, axis_name),  # for a line search
    )
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    averaged = state.ema
    if ema:
        # Between two updates the parameters stand still, and so must their average.
        rate = jnp.where(step % accumulate == 0, 1 - ema, 0.0)
        # Of equal numbers, such as frozen ones, the average is that number to the bit.
        averaged = jax.tree.map(lambda new, old: old + rate * (new - old), params, state.ema)
    metrics |= {
        "grad_norm": optax.tree.norm(gradients),
        "learning_rate": jnp.asarray(
            schedule(state.step // accumulate) * optimizers.rate_scale(state.opt_state), jnp.float32
        ),
    }
    state = state.replace(step=step, params=params, batch_stats=batch_stats, opt_state=opt_state, ema=averaged)
    return state, metrics


def _gradients(state, batch, key, model, preprocess, mix, smoothing, axis_name, intercepted):
    """What one forward and backward pass gives, of the whole batch over all devices.

    (gradients, new batch statistics, {"loss", "accuracy", "count"}, params -> (this device's share of the loss, ...)).
    """
    image = preprocess(jax.random.fold_in(key, 0), batch["image"])
    target, mask = batch["label"], batch["mask"]
    if mix is not None:
        image, target = mix(jax.random.fold_in(key, 2), image, target, mask)
    count = jnp.maximum(_sum(mask, axis_name), 1)

    def loss_of(params):
        with intercepted():
            answer, updated = apply_model(
                model,
                {"params": params, "batch_stats": state.batch_stats},
                image,
                mask,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.fold_in(key, 1)},
            )
        heads, weights = _heads(model, answer)
        losses = sum(
            weight * functional.cross_entropy(logits, target, smoothing=smoothing)
            for logits, weight in zip(heads, weights, strict=True)
        )
        total = jnp.where(mask, losses, 0).sum()
        return total / count, (heads[0], updated.get("batch_stats", state.batch_stats))

    (loss, (logits, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    if axis_name is not None:
        gradients, loss = jax.lax.psum((gradients, loss), axis_name)
        batch_stats = _of_replica_0(batch_stats, axis_name)
    label = target if mix is None else target.argmax(-1)
    accuracy = _sum(mask & (logits.argmax(-1) == label), axis_name) / count
    return gradients, batch_stats, {"loss": loss, "accuracy": accuracy, "count": count}, loss_of


def _heads(model, answer):
    """(logits of all heads, the weights of their losses): of one head, or of a network with auxiliary ones."""
    heads = list(answer) if isinstance(answer, tuple) else [answer]
    weight = getattr(model, "auxiliary_weight", 0.0)
    if len(heads) > 1 and not weight:
        raise InputError(
            f"{type(model).__name__} answers with {len(heads) - 1} auxiliary heads in training, but has no "
            f"auxiliary_weight for their losses; give the module that attribute, such as 0.3"
        )
    return heads, [1.0, *[weight] * (len(heads) - 1)]


def _whole_loss(loss_of, axis_name):
    """params -> loss of the whole batch. Its gradient is that of the whole batch too, which that of a psum is not."""

    def forward(params):
        (loss, _), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        return (loss, gradient) if axis_name is None else jax.lax.psum((loss, gradient), axis_name)

    whole = jax.custom_vjp(lambda params: forward(params)[0])
    whole.defvjp(forward, lambda gradient, scale: (jax.tree.map(lambda g: scale * g, gradient),))
    return whole


def eval_step(variables, batch, *, model, preprocess):
    """What evaluation needs of each row of a batch.

    Its loss (nats), its likeliest classes (up to five, best first), the logarithms of all classes' probabilities, its
    label and mask. Rows whose mask is False are padding; their values mean nothing.
    """
    image = preprocess(None, batch["image"])
    logits = apply_model(model, variables, image, batch["mask"], train=False).astype(jnp.float32)
    return {
        "label": batch["label"],
        "mask": batch["mask"],
        "loss": functional.cross_entropy(logits, batch["label"]),
        "classes": jax.lax.top_k(logits, min(5, logits.shape[-1]))[1],
        "log_probabilities": jax.nn.log_softmax(logits),
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
