"""What is tried in the operations of a model: its program is traced, and some equations are replaced."""

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, Var, jaxpr_as_fun

from deepjax.doctor.head import SHAPED, inlined, last_layer, run_flat
from deepjax.doctor.subject import Subject


def connected(subject: Subject) -> Subject:
    """Let gradients pass where `stop_gradient` blocks them, and where numbers are rounded, compared or ranked.

    The values stay, and the gradient is that of a smooth function (Bengio et al. 2013): of the number itself where it
    is rounded, of a softmax in place of a one-hot argmax, of a sigmoid in place of a comparison, of tanh for a sign.
    """

    def choose(jaxpr, moving):
        passing = [eqn for eqn in jaxpr.eqns if eqn.primitive.name in PASSING and _real(eqn.outvars[0])]
        replaced = {id(eqn): PASSING[eqn.primitive.name] for eqn in passing}
        makes, kept = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}, {}
        for eqn in jaxpr.eqns:
            replaced |= _smoothed(makes, eqn, kept)
        return lambda eqn: replaced.get(id(eqn))

    return _rewritten(subject, choose)


def _smoothed(makes, end, kept):
    """Return {id of an equation: what replaces it}, if an equation makes numbers of a comparison, an index or a cast.

    The equation that looks at numbers for the last time keeps them in `kept`, and `end` gets their gradient.
    """
    if end.primitive.name != "convert_element_type" or not _real(end.outvars[0]) or _real(end.invars[0]):
        return {}
    source, axis = _discrete(makes, end.invars[0]), None
    if source is not None and source.primitive.name == "eq":
        sides = [_discrete(makes, v) for v in source.invars]
        axis = _class_axis(sides, end.outvars[0].aval.ndim)
        indices = [each for each in sides if _name(each) in ("argmax", "argmin")]
        source = indices[0] if indices and axis is not None else None
    if source is None or _name(source) not in SMOOTH or not _real(source.invars[0]):
        return {}

    def look(*operands):
        kept[id(source)] = operands
        return source.primitive.bind(*operands, **source.params)

    def give(x):
        hard, soft = end.primitive.bind(x, **end.params), SMOOTH[source.primitive.name](source, *kept[id(source)])
        soft = jnp.moveaxis(soft, -1, axis) if axis is not None else soft
        fits = soft.shape == hard.shape if axis is not None else soft.size == hard.size
        return _through(hard, soft.reshape(hard.shape).astype(hard.dtype)) if fits else hard

    return {id(source): look, id(end): give}


def _class_axis(sides, ndim):
    """Return the axis along which a one-hot array of `ndim` axes counts the classes, where an index meets 0, 1, ..."""
    counts = [each for each in sides if _name(each) == "iota" and len(each.params["shape"]) == ndim]
    return counts[0].params["dimension"] if counts else None


def _discrete(makes, v):
    """Return the equation that makes whole or truth values of others, before their shape and type change, or None."""
    eqn = makes.get(v) if isinstance(v, Var) else None
    while eqn is not None and eqn.primitive.name in IN_ORDER and not _real(eqn.invars[0]):
        eqn = makes.get(eqn.invars[0]) if isinstance(eqn.invars[0], Var) else None
    return eqn


def _real(v):
    return jnp.issubdtype(v.aval.dtype, jnp.floating)


def _through(hard, soft):
    return hard + jnp.where(jnp.isfinite(soft), soft - jax.lax.stop_gradient(soft), 0)  # exactly `hard`


def _soft_one_hot(eqn, x):
    axis, sign = eqn.params["axes"][0], 1 if eqn.primitive.name == "argmax" else -1
    return jnp.moveaxis(jax.nn.softmax(sign * x, axis), axis, -1)  # the classes last


PASSING = {
    "stop_gradient": jnp.asarray,
    "round": lambda x: _through(jnp.round(x), x),
    "floor": lambda x: _through(jnp.floor(x), x),
    "ceil": lambda x: _through(jnp.ceil(x), x),
    "sign": lambda x: _through(jnp.sign(x), jnp.tanh(x)),
}
IN_ORDER = tuple(name for name in SHAPED if name != "transpose")  # the order of the numbers stays
SMOOTH = {
    **dict.fromkeys(("argmax", "argmin"), _soft_one_hot),
    "convert_element_type": lambda eqn, x: x,
    **dict.fromkeys(("gt", "ge"), lambda eqn, x, y: jax.nn.sigmoid(x - y)),
    **dict.fromkeys(("lt", "le"), lambda eqn, x, y: jax.nn.sigmoid(y - x)),
}


def relu_in_place(subject: Subject) -> Subject:
    """Replace sigmoids and hyperbolic tangents between layers by ReLUs, in scans too, but not those of the output."""

    def choose(jaxpr, moving):
        found = last_layer(jaxpr, moving)
        return _relu_for_saturating(jaxpr, found[0] if found else 0)

    return _rewritten(subject, choose)


def relu_for_softmax(subject: Subject) -> Subject:
    """Replace every softmax(z) and log-softmax(z) between layers by ReLU(z), those of attention too.

    That of the output stays. A softmax is exp(z - max) / sum; its logarithm is (z - max) - log(sum).
    """

    def choose(jaxpr, moving):
        found = last_layer(jaxpr, moving)
        makes = {v: eqn for eqn in jaxpr.eqns[: found[0] if found else 0] for v in eqn.outvars}
        replaced = {}
        for eqn in makes.values():
            replaced |= _softmax_parts(makes, eqn)
        return lambda eqn: replaced.get(id(eqn))

    return _rewritten(subject, choose)


def _softmax_parts(makes, eqn):
    """Return {id of an equation: what replaces it}, if an equation ends a softmax or a log-softmax; else nothing."""
    if len(eqn.invars) != 2:
        return {}
    numerator, denominator = (_maker(makes, v) for v in eqn.invars)
    names = [_name(each) for each in (eqn, numerator, denominator)]
    if numerator is not None and names == ["div", "exp", "reduce_sum"]:
        difference, last = _maker(makes, numerator.invars[0]), _first
    elif names == ["sub", "sub", "log"]:
        difference, last = numerator, lambda x, y: jax.nn.relu(x)
    else:
        return {}
    if _name(difference) != "sub":
        return {}
    return {id(eqn): last, id(numerator): jax.nn.relu, id(difference): _first}


def _maker(makes, v):
    """Return the equation that makes a variable, before its shape is changed, or None."""
    eqn = makes.get(v) if isinstance(v, Var) else None
    while eqn is not None and eqn.primitive.name in SHAPED and isinstance(eqn.invars[0], Var):
        eqn = makes.get(eqn.invars[0])
    return eqn


def _name(eqn):
    return eqn.primitive.name if eqn is not None else ""


def _first(x, y):
    return x


def _relu_for_saturating(jaxpr, end):
    """Return the function that `run_flat` takes, for the first `end` equations of a jaxpr."""
    hidden = jaxpr.eqns[:end]
    saturating = {id(eqn) for eqn in hidden if _saturates(eqn, jaxpr)}
    scans = {id(eqn) for eqn in hidden if eqn.primitive.name == "scan"}

    def choose(eqn):
        if id(eqn) in saturating:
            return jax.nn.relu
        return _scan_with_relu(eqn) if id(eqn) in scans else None

    return choose


def _scan_with_relu(eqn):
    body = eqn.params["jaxpr"]
    places = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in body.jaxpr.invars]
    flat = inlined(jaxpr_as_fun(body), places)
    choose = _relu_for_saturating(flat.jaxpr, len(flat.jaxpr.eqns))
    changed = jax.make_jaxpr(lambda *a: run_flat(flat, list(a), choose))(*places)
    return lambda *operands: eqn.primitive.bind(*operands, **{**eqn.params, "jaxpr": changed})


def _rewritten(subject, choose):
    """Return the subject with some equations of its calls replaced.

    Args:
      subject: the subject.
      choose: function (jaxpr without calls, its variables that are inputs of the model) -> what `run_flat` takes.
    """

    def apply(variables, inputs, train, key):
        flat, tree = jax.tree.flatten((variables, inputs, key))
        structure = []

        def call(*leaves):
            variables, inputs, key = jax.tree.unflatten(tree, leaves)
            out = subject.apply(variables, inputs, train, key)
            structure.append(jax.tree.structure(out))
            return jax.tree.leaves(out)

        closed = inlined(call, flat)
        first = len(jax.tree.leaves(variables))
        moving = set(closed.jaxpr.invars[first : first + len(jax.tree.leaves(inputs))])
        return jax.tree.unflatten(structure[0], run_flat(closed, flat, choose(closed.jaxpr, moving)))

    return subject.with_(apply=apply)


def _saturates(eqn, jaxpr):
    """Whether an equation is a sigmoid or tanh, and not a part of SiLU or GELU, which multiply it by their input."""
    if eqn.primitive.name not in ("logistic", "tanh"):
        return False
    ends = set(eqn.outvars)
    used = [other for other in jaxpr.eqns if any(isinstance(v, Var) and v in ends for v in other.invars)]
    return not any(
        other.primitive.name == "mul" or (other.primitive.name == "add" and isinstance(other.invars[-1], Literal))
        for other in used
    )


def guarded(subject: Subject) -> Subject:
    """Keep the operands of logarithms, roots, quotients and exponentials where these are finite."""
    return _rewritten(subject, lambda jaxpr, moving: lambda eqn: GUARDED.get(eqn.primitive.name))


def _away_from_zero(x):
    return jnp.where(jnp.abs(x) < EPSILON, EPSILON, x)


EPSILON = 1e-6
GUARDED = {
    "log": lambda x: jnp.log(jnp.maximum(x, EPSILON)),
    "sqrt": lambda x: jnp.sqrt(jnp.maximum(x, EPSILON)),
    "rsqrt": lambda x: jax.lax.rsqrt(jnp.maximum(x, EPSILON)),
    "div": lambda x, y: x / (_away_from_zero(y) if jnp.issubdtype(y.dtype, jnp.floating) else y),
    "exp": lambda x: jnp.exp(jnp.minimum(x, 80.0)),
}
