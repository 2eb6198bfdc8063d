"""What a trained network responds to: gradients in the image, occlusion, effective receptive fields."""

from deepjax.inside.gradients import deconvnet, gradient, guided_backprop, saliency
from deepjax.inside.occlusion import occlusion
from deepjax.inside.receptive_field import influence, spread

__all__ = ["deconvnet", "gradient", "guided_backprop", "influence", "occlusion", "saliency", "spread"]
