"""What a network gets: standardized, augmented and cropped examples, for tasks whose inputs are images or features."""

import numpy as np

from deepjax import data
from deepjax.errors import InputError
from deepjax.runs.workdir import Statistics


def input_functions(config, statistics):
    """Return (examples as stored -> inputs of the model, (key, examples as stored) -> inputs in training)."""
    augment, standardizer, crop = config.data.augment, statistics.standardizer, config.data.center_crop

    def standardized(image):
        return data.center_crop(standardizer.apply(image), crop)

    def augmented(key, image):
        image = data.change_colors(key, image, augment, statistics.lighting)
        return data.center_crop(data.augment(key, standardizer.apply(image), augment), crop)

    return standardized, augmented


def fit_statistics(config, dataset, source=None) -> Statistics:
    """Return the Statistics of the training set that the config requires.

    Args:
      config: the experiment. If it sets mean and std, they are used.
      dataset: data set whose training split is measured.
      source: a `fine_tuning.Source` of pretrained weights. Its standardization is used, since they depend on it.

    Raises:
      InputError: only one of mean and std is given, or not one value per channel; the source's images were standardized
        in another way.
    """
    wanted, given = config.data, (config.data.mean, config.data.std)
    lighting = data.lighting_components(dataset.train) if wanted.augment.lighting else None
    if not any(given):
        return Statistics(_standardizer(wanted, dataset, source), lighting)
    if any(len(values) != dataset.shape[-1] for values in given) or min(given[1]) <= 0:
        raise InputError(
            f"data.mean {given[0]} and data.std {given[1]} must each have {dataset.shape[-1]} values, std above 0"
        )
    return Statistics(data.Standardizer("channel", *(np.asarray(values, np.float32) for values in given)), lighting)


def _standardizer(wanted, dataset, source):
    if source is None:
        return data.Standardizer.fit(wanted.standardize, dataset.train, epsilon=wanted.epsilon, limits=wanted.limits)
    if source.standardizer.kind != wanted.standardize:
        raise InputError(
            f"data.standardize {wanted.standardize} differs from that of pretrained {source.where}; set "
            f"data.standardize {source.standardizer.kind}"
        )
    return source.standardizer
