"""Inception v4 and Inception-ResNet v2.

Szegedy et al. 2016, "Inception-v4, Inception-ResNet and the impact of residual connections on learning" (arXiv
1602.07261), section 3, and for `inception_resnet_v2` the form in which Google published its weights.
"""

from flax.core import freeze

from deepjax.units import norm_factory
from deepjax.zoo.inception import HALVE, START, STEM
from deepjax.zoo.steps import Convolve, Fork, Parallel, Pool, Repeat, Residual
from deepjax.zoo.table import TableNetwork, check_table

MEAN = Pool("avg", 3, 1, 1, count_padding=False)
WIDE, TALL = (1, 7), (7, 1)
SMALL_FORK = Fork((Convolve(256, (1, 3)), Convolve(256, (3, 1))))

STEM_V4 = (  # figure 3
    Parallel("stem1", (START,)),
    Parallel("stem2", ((HALVE,), (Convolve(96, 3, 2, 0),))),
    Parallel(
        "stem3",
        (
            (Convolve(64), Convolve(96, 3, 1, 0)),
            (Convolve(64), Convolve(64, WIDE), Convolve(64, TALL), Convolve(96, 3, 1, 0)),
        ),
    ),
    Parallel("stem4", ((Convolve(192, 3, 2, 0),), (HALVE,))),
)
A = (  # figure 4
    (Convolve(96),),
    (Convolve(64), Convolve(96, 3)),
    (Convolve(64), Convolve(96, 3), Convolve(96, 3)),
    (MEAN, Convolve(96)),
)
B = (  # figure 5
    (Convolve(384),),
    (Convolve(192), Convolve(224, WIDE), Convolve(256, TALL)),
    (Convolve(192), Convolve(192, TALL), Convolve(224, WIDE), Convolve(224, TALL), Convolve(256, WIDE)),
    (MEAN, Convolve(128)),
)
C = (  # figure 6
    (Convolve(256),),
    (Convolve(384), SMALL_FORK),
    (Convolve(384), Convolve(448, (3, 1)), Convolve(512, (1, 3)), SMALL_FORK),
    (MEAN, Convolve(256)),
)


def to_17(k, inner, m, n):
    """Return the branches that go from 35x35 to 17x17 pixels: figure 7, with the features of table 1."""
    return ((Convolve(n, 3, 2, 0),), (Convolve(k), Convolve(inner, 3), Convolve(m, 3, 2, 0)), (HALVE,))


TO_8 = (  # figure 8
    (Convolve(192), Convolve(192, 3, 2, 0)),
    (Convolve(256), Convolve(256, WIDE), Convolve(320, TALL), Convolve(320, 3, 2, 0)),
    (HALVE,),
)


def repeat(name, branches, depth, scale=None):
    """Return `depth` equal modules as one step. With a scale, they are residual."""
    step = Parallel(name, branches) if scale is None else Residual(name, branches, scale)
    return Repeat(name, step, depth)


V4 = freeze(
    {
        "stem": STEM_V4,
        "stage1": (repeat("stage1_units", A, 4),),
        "stage2": (Parallel("stage2_reduce", to_17(192, 224, 256, 384)), repeat("stage2_units", B, 7)),
        "stage3": (Parallel("stage3_reduce", TO_8), repeat("stage3_units", C, 3)),
    }
)

RESIDUAL_A = (  # figure 16
    (Convolve(32),),
    (Convolve(32), Convolve(32, 3)),
    (Convolve(32), Convolve(48, 3), Convolve(64, 3)),
)
RESIDUAL_B = ((Convolve(192),), (Convolve(128), Convolve(160, WIDE), Convolve(192, TALL)))  # figure 17
RESIDUAL_C = ((Convolve(192),), (Convolve(192), Convolve(224, (1, 3)), Convolve(256, (3, 1))))  # figure 19
RESIDUAL_TO_8 = (  # figure 18
    (Convolve(256), Convolve(384, 3, 2, 0)),
    (Convolve(256), Convolve(288, 3, 2, 0)),
    (Convolve(256), Convolve(288, 3), Convolve(320, 3, 2, 0)),
    (HALVE,),
)
TO_320 = (
    (Convolve(96),),
    (Convolve(48), Convolve(64, 5)),
    (Convolve(64), Convolve(96, 3), Convolve(96, 3)),
    (MEAN, Convolve(64)),
)
RESNET_V2 = freeze(
    {
        "stem": (Parallel("stem", (STEM,)),),
        "stage1": (Parallel("stage1_first", TO_320), repeat("stage1_units", RESIDUAL_A, 10, 0.17)),
        "stage2": (
            Parallel("stage2_reduce", to_17(256, 256, 384, 384)),
            repeat("stage2_units", RESIDUAL_B, 20, 0.1),
        ),
        "stage3": (
            Parallel("stage3_reduce", RESIDUAL_TO_8),
            repeat("stage3_units", RESIDUAL_C, 9, 0.2),
            Residual("stage3_last", RESIDUAL_C, 1.0, activated=False),
            Parallel("stage3_wide", ((Convolve(1536),),)),
        ),
    }
)


def inception_v4(num_classes=1000, *, norm="batch", dropout=0.2, epsilon=1e-3, scan=True, dtype=None):
    """Make Inception v4 (figure 9): 4, 7 and 3 equal modules, reductions between them; 42,679,816 parameters.

    Args:
      num_classes: number of logits.
      norm: normalization after every convolution: "batch", "group", "layer" or "instance"; "none": biases instead.
      dropout: probability that an input of the last layer is dropped. The paper keeps 80% of them.
      epsilon: epsilon of the norms.
      scan: run equal modules as one scan; False unrolls them.
      dtype: dtype of the computation.

    Raises:
      InputError: an unknown norm, a dropout outside [0, 1]. When called: images smaller than 75x75 pixels.
    """
    return _network("inception_v4", V4, num_classes, norm, dropout, epsilon, scan=scan, dtype=dtype)


def inception_resnet_v2(num_classes=1000, *, norm="batch", dropout=0.2, epsilon=1e-3, scan=True, dtype=None):
    """Make Inception-ResNet v2 in the form of Google's published weights: 55,843,464 parameters.

    Its stem is that of Inception v3, followed by a module that widens it to 320 features. Then come 10, 20 and 9
    residual modules, whose branches are scaled by 0.17, 0.1 and 0.2 (section 3.3), one residual module without scale
    and ReLU, and a 1x1 convolution to 1,536 features. The paper's figures have 5, 10 and 5 modules on Inception v4's
    stem.

    Arguments and errors are those of `inception_v4`.
    """
    return _network("inception_resnet_v2", RESNET_V2, num_classes, norm, dropout, epsilon, scan=scan, dtype=dtype)


def _network(name, stages, num_classes, norm, dropout, epsilon, **options):
    check_table(name, num_classes=num_classes, norm=norm, dropout=dropout)
    return TableNetwork(
        stages,
        num_classes=num_classes,
        norm=norm_factory(norm, epsilon=epsilon),
        dropout=dropout,
        usual_input=(299, 299, 3),
        min_size=75,
        **options,
    )


MODELS = {"inception_v4": inception_v4, "inception_resnet_v2": inception_resnet_v2}
