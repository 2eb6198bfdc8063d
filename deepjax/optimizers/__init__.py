"""The Optax chain and the schedule that a config describes.

Configs speak of epochs, schedules and transformations of updates: `schedules.update_count` is the one place that
converts.
"""

from deepjax.optimizers.chain import kernels, make_optimizer
from deepjax.optimizers.schedules import make_schedule, observe, rate_scale
from deepjax.optimizers.transforms import slow_params

__all__ = ["kernels", "make_optimizer", "make_schedule", "observe", "rate_scale", "slow_params"]
