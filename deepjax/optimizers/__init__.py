"""The Optax chain and the schedule that a config describes.

Times are epochs in a config, and updates in schedules and in Optax. `Times` is the only conversion.
"""

from deepjax.optimizers.catalogue import OPTIMIZERS
from deepjax.optimizers.chain import check_optimizer, kernels, make_optimizer
from deepjax.optimizers.schedules import SCHEDULES, check_schedule, make_schedule, observe, rate_scale
from deepjax.optimizers.times import Times, make_times
from deepjax.optimizers.transforms import slow_params

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Times",
    "check_optimizer",
    "check_schedule",
    "kernels",
    "make_optimizer",
    "make_schedule",
    "make_times",
    "observe",
    "rate_scale",
    "slow_params",
]
