"""Inception v4 and Inception-ResNet v2.

Szegedy et al. 2016, "Inception-v4, Inception-ResNet and the impact of residual connections on learning" (arXiv
1602.07261), section 3, and for `inception_resnet_v2` the form in which Google published its weights.
"""

from flax.core import freeze

from deepjax.units import norm_factory
from deepjax.zoo.branches import Conv, Fork, InceptionNetwork, Pool, Repeat, check

HALVE = Pool("max", 3, 2)
MEAN = Pool("avg", 3, 1, 1, count_padding=False)
START = (Conv(32, 3, 2, 0), Conv(32, 3, 1, 0), Conv(64, 3))
WIDE, TALL = (1, 7), (7, 1)
SMALL_FORK = Fork((Conv(256, (1, 3)), Conv(256, (3, 1))))

STEM_V4 = {  # figure 3
    "1": (START,),
    "2": ((HALVE,), (Conv(96, 3, 2, 0),)),
    "3": ((Conv(64), Conv(96, 3, 1, 0)), (Conv(64), Conv(64, WIDE), Conv(64, TALL), Conv(96, 3, 1, 0))),
    "4": ((Conv(192, 3, 2, 0),), (HALVE,)),
}
A = (  # figure 4
    (Conv(96),),
    (Conv(64), Conv(96, 3)),
    (Conv(64), Conv(96, 3), Conv(96, 3)),
    (MEAN, Conv(96)),
)
B = (  # figure 5
    (Conv(384),),
    (Conv(192), Conv(224, WIDE), Conv(256, TALL)),
    (Conv(192), Conv(192, TALL), Conv(224, WIDE), Conv(224, TALL), Conv(256, WIDE)),
    (MEAN, Conv(128)),
)
C = (  # figure 6
    (Conv(256),),
    (Conv(384), SMALL_FORK),
    (Conv(384), Conv(448, (3, 1)), Conv(512, (1, 3)), SMALL_FORK),
    (MEAN, Conv(256)),
)


def to_17(k, inner, m, n):
    """From 35x35 to 17x17 pixels: figure 7, with the features of table 1."""
    return ((Conv(n, 3, 2, 0),), (Conv(k), Conv(inner, 3), Conv(m, 3, 2, 0)), (HALVE,))


TO_8 = (  # figure 8
    (Conv(192), Conv(192, 3, 2, 0)),
    (Conv(256), Conv(256, WIDE), Conv(320, TALL), Conv(320, 3, 2, 0)),
    (HALVE,),
)
V4 = freeze(
    {
        "stem": STEM_V4,
        "stage1": {"_units": Repeat(A, 4)},
        "stage2": {"_reduce": to_17(192, 224, 256, 384), "_units": Repeat(B, 7)},
        "stage3": {"_reduce": TO_8, "_units": Repeat(C, 3)},
    }
)

RESIDUAL_A = ((Conv(32),), (Conv(32), Conv(32, 3)), (Conv(32), Conv(48, 3), Conv(64, 3)))  # figure 16
RESIDUAL_B = ((Conv(192),), (Conv(128), Conv(160, WIDE), Conv(192, TALL)))  # figure 17
RESIDUAL_C = ((Conv(192),), (Conv(192), Conv(224, (1, 3)), Conv(256, (3, 1))))  # figure 19
RESIDUAL_TO_8 = (  # figure 18
    (Conv(256), Conv(384, 3, 2, 0)),
    (Conv(256), Conv(288, 3, 2, 0)),
    (Conv(256), Conv(288, 3), Conv(320, 3, 2, 0)),
    (HALVE,),
)
TO_320 = ((Conv(96),), (Conv(48), Conv(64, 5)), (Conv(64), Conv(96, 3), Conv(96, 3)), (MEAN, Conv(64)))
RESNET_V2 = freeze(
    {
        "stem": {"": ((*START, HALVE, Conv(80), Conv(192, 3, 1, 0), HALVE),)},
        "stage1": {"_first": TO_320, "_units": Repeat(RESIDUAL_A, 10, 0.17)},
        "stage2": {"_reduce": to_17(256, 256, 384, 384), "_units": Repeat(RESIDUAL_B, 20, 0.1)},
        "stage3": {
            "_reduce": RESIDUAL_TO_8,
            "_units": Repeat(RESIDUAL_C, 9, 0.2),
            "_last": Repeat(RESIDUAL_C, 1, 1.0, activated=False),
            "_wide": ((Conv(1536),),),
        },
    }
)


def inception_v4(num_classes=1000, *, norm="batch", dropout=0.2, epsilon=1e-3, scan=True, dtype=None):
    """Inception v4 (figure 9): 4, 7 and 3 equal modules, reductions between them; 42,679,816 parameters.

    Args:
      num_classes: logits.
      norm: behind every convolution: a word of `units.NORMS` or a factory; without, biases in its place.
      dropout: the probability to drop an input of the last layer; the paper keeps 0.8.
      epsilon: of the norms.
      scan: equal modules as one scan; False unrolls them.
      dtype: of the computation.

    Raises:
      InputError: an unknown norm, a dropout outside [0, 1]; when called, images of less than 75x75 pixels.
    """
    return _network("inception_v4", V4, num_classes, norm, dropout, epsilon, scan=scan, dtype=dtype)


def inception_resnet_v2(num_classes=1000, *, norm="batch", dropout=0.2, epsilon=1e-3, scan=True, dtype=None):
    """Inception-ResNet v2 as Google published its weights: 55,843,464 parameters.

    Its stem is that of Inception v3 and a module which widens to 320 features; 10, 20 and 9 residual modules follow,
    whose branches count 0.17, 0.1 and 0.2 (section 3.3), a last one that counts in full and has no ReLU, and a 1x1
    convolution to 1,536 features. The figures of the paper have 5, 10 and 5 modules on Inception v4's stem.

    Arguments and errors as of `inception_v4`.
    """
    return _network("inception_resnet_v2", RESNET_V2, num_classes, norm, dropout, epsilon, scan=scan, dtype=dtype)


def _network(name, stages, num_classes, norm, dropout, epsilon, **options):
    check(name, num_classes, dropout=dropout)
    return InceptionNetwork(
        stages,
        freeze({}),
        num_classes=num_classes,
        norm=norm_factory(norm, epsilon=epsilon),
        dropout=dropout,
        usual_input=(299, 299, 3),
        min_size=75,
        **options,
    )


MODELS = {"inception_v4": inception_v4, "inception_resnet_v2": inception_resnet_v2}
