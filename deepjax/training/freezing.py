"""The parameters that a config freezes, until when, and the behavior of frozen batch norms."""

import contextlib
import dataclasses
from functools import partial

from deepjax.errors import InputError
from deepjax.trace.batch_norm import frozen_batch_norms


def check(config):
    """Raise InputError if freeze, thaw and related fields do not go together."""
    if config.pretrained_layers and not config.pretrained:
        raise InputError("pretrained_layers does nothing without pretrained; set pretrained, or leave it out")
    if not config.reset_head and not config.pretrained:
        raise InputError("reset_head False does nothing without pretrained; set pretrained, or leave it out")
    groups = config.optimizer.groups.values()
    if config.freeze_moments and not config.freeze and not any("frozen" in name for group in groups for name in group):
        raise InputError("freeze_moments True does nothing where nothing is frozen; name patterns to freeze")
    for name in ("thaw", "thaw_share"):
        if getattr(config, name) and not config.freeze:
            raise InputError(f"{name} {getattr(config, name)} does nothing without freeze; name patterns to freeze")
    if config.freeze and not config.pretrained:
        raise InputError(
            f"freeze {' '.join(config.freeze)} would keep random numbers; set pretrained (to freeze them anyway: "
            f"optimizer.groups)"
        )
    if config.thaw and config.thaw_share:
        raise InputError(f"thaw {config.thaw} and thaw_share {config.thaw_share} both set the time; set one of them")
    if len(config.thaw) not in (0, 1, len(config.freeze)):
        raise InputError(
            f"thaw has {len(config.thaw)} epochs for the {len(config.freeze)} patterns of freeze; give one for all, or "
            f"one for each"
        )


def thaws(config):
    """Return {pattern of config.freeze: the epoch at which it thaws, or None for never}."""
    epochs = config.thaw or ((config.thaw_share * config.epochs,) if config.thaw_share else (None,))
    return dict(zip(config.freeze, epochs * len(config.freeze) if len(epochs) == 1 else epochs, strict=True))


def frozen_optimizer(config):
    """Return `config.optimizer` with a group for each pattern of `config.freeze`, after its own groups.

    Of several groups that match a parameter, the first one counts.

    Raise InputError if a pattern is both a group with settings and frozen for the whole run.
    """
    groups = dict(config.optimizer.groups)
    for pattern, epoch in thaws(config).items():
        if epoch is None and pattern in groups:
            raise InputError(f"freeze {pattern!r} is a group of the optimizer with settings, too; thaw it, or drop one")
        groups[pattern] = groups.get(pattern, {}) | ({"frozen": True} if epoch is None else {"frozen_until": epoch})
    return dataclasses.replace(config.optimizer, groups=groups)


def frozen_moments(config, times):
    """Return {pattern: updates for which moments are frozen, None for all}, in order of precedence; None for none.

    `times`: the `optimizers.Times` of the run.
    """
    if not config.freeze_moments:
        return None
    return {
        pattern: None if settings.get("frozen") else times.updates(settings.get("frozen_until", 0))
        for pattern, settings in frozen_optimizer(config).groups.items()
    }


def keep_moments(kept, updates):
    """Return a function that makes a context in which frozen batch normalizations keep their moments.

    That is PyTorch's `eval()` of frozen layers (see `trace.batch_norm.frozen_batch_norms`). A batch normalization is
    frozen where its scale is.

    Args:
      kept: result of `frozen_moments`; None: the context has no effect.
      updates: number of updates so far; may be traced.
    """
    if kept is None:
        return contextlib.nullcontext
    frozen = {pattern: until is None or (until > 0 and updates < until) for pattern, until in kept.items()}
    return partial(frozen_batch_norms, frozen)
