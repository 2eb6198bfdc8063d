"""Write convolutions, poolings and dense layers as the tables of a lecture do: `conv(7, 64, p3, s2)`."""

from collections.abc import Sequence


def word(eqn) -> str:
    """Return the words for an equation of a jaxpr that convolves, pools or multiplies by a matrix.

    A convolution is `conv(window, features, padding, stride)`, a max pooling `pool(window, stride, padding)`, another
    pooling `avg(window, stride, padding)`, a dense layer `fc(features)`. Padding 0, a convolution's stride 1 and the
    stride of a pooling over the whole map are left out. Groups and dilation, which lectures' tables do not have, are
    g and d.
    """
    name, x = eqn.primitive.name, eqn.invars[0].aval.shape
    if name == "conv_general_dilated":
        return _convolution(eqn.params, eqn.invars[1].aval.shape)
    if name.startswith("reduce_window"):
        window, stride, padding = (eqn.params[key] for key in ("window_dimensions", "window_strides", "padding"))
        kind = "pool" if name.endswith("max") else "avg"
        return _call(kind, _sides(window[1:-1]), _sides(stride[1:-1]), _padding(padding[1:-1]))
    if name in ("reduce_sum", "reduce_max"):
        return _call("pool" if name.endswith("max") else "avg", _sides([x[axis] for axis in eqn.params["axes"]]))
    if name == "slice":
        return _call("subsample", _sides([step for step in eqn.params["strides"] if step > 1]))
    return _call("fc", str(eqn.outvars[0].aval.shape[-1]))


def _convolution(params, kernel):
    axes, strides, dilations = params["dimension_numbers"].rhs_spec, params["window_strides"], params["rhs_dilation"]
    groups = params["feature_group_count"]
    return _call(
        "conv",
        _sides([kernel[axis] for axis in axes[2:]]),
        str(kernel[axes[0]]),
        _padding(params["padding"]),
        f"s{_sides(strides)}" if max(strides, default=1) > 1 else "",
        f"g{groups}" if groups > 1 else "",
        f"d{_sides(dilations)}" if max(dilations, default=1) > 1 else "",
    )


def _call(name, *words):
    return f"{name}({', '.join(filter(None, words))})"


def _sides(sides: Sequence):
    """Write 3 for (3, 3), and 1x7 for (1, 7)."""
    return "x".join(map(str, sides[:1] if len(set(sides)) == 1 else sides))


def _padding(pairs):
    """Write p1 for one pixel on every side, p0+1 for one on the far side only, nothing for none."""
    texts = [str(low) if low == high else f"{low}+{high}" for low, high in pairs]
    return "" if {*texts} <= {"0"} else f"p{_sides(texts)}"
