"""The causes that the doctor knows, in the order in which they are looked for.

A cause is a function of `Evidence` that yields suspicions: findings with the remedy that is to be tried. One file holds
the causes of one kind. Those of `FIRST` follow from the data, the loss, the output and the normalizations alone. Their
remedies are applied before the others are looked for, because their consequences (no gradient, no learning) look like
other causes.
"""

from deepjax.doctor.causes import (
    data,
    learnable,
    normalization,
    numerics,
    output,
    padding,
    plan,
    structure,
    terms,
    weights,
)

# The order of positions comes first: its remedy draws the layers again, which would undo the other remedies.
FIRST = (
    structure.order_of_positions,
    *data.CAUSES,
    *output.CAUSES,
    *terms.CAUSES,
    normalization.wrong_mode,
    normalization.single_values,
)
SCALES = data.SCALES
SECOND = (
    *numerics.CAUSES,
    *structure.CAUSES,
    *padding.CAUSES,
    plan.accumulation_that_sums,
    *normalization.CAUSES,
    *weights.CAUSES,
    *structure.LATE,
    *learnable.CAUSES,
)
THIRD = (*plan.CAUSES, *structure.LAST, *learnable.LAST, *data.LAST)
