"""Groups of parameters by path pattern: with different settings, frozen, or frozen until an epoch."""

import dataclasses
import difflib
from fnmatch import fnmatchcase
from typing import NamedTuple

import jax
import optax

from deepjax import config
from deepjax.errors import InputError, choices

REST = ""  # the label of parameters that no pattern matches

# Fields of config.Optimizer that a group may set, besides frozen and frozen_until.
FIELDS = (
    "learning_rate", "momentum", "second_moment", "epsilon", "momentum_decay", "weight_decay", "clip_adaptive",
    "clip_value",
)  # fmt: skip


class Group(NamedTuple):
    """The settings of the optimizer, with those that a group changes."""

    optimizer: config.Optimizer
    frozen: bool = False
    frozen_until: float = 0  # epochs


def read_groups(optimizer):
    """Return {pattern: Group} of `optimizer.groups` in order, followed by {REST: Group(optimizer)}.

    Raise InputError for an unknown field, a value of the wrong type, and fields that exclude each other.
    """
    groups = {}
    for pattern, fields in optimizer.groups.items():
        where = f"optimizer.groups {pattern!r}"
        if not isinstance(fields, dict):
            raise InputError(f'{where}: {fields!r} must be a dict of settings, such as {{"learning_rate": 0.1}}')
        for name, value in fields.items():
            if name not in (*FIELDS, "frozen", "frozen_until"):
                valid = choices(name, (*FIELDS, "frozen", "frozen_until"))
                raise InputError(f"{where}: {name!r} is not a setting of a group; {valid}")
            _check_type(where, name, value)
        if not pattern or not fields:
            raise InputError(f"{where}: {fields!r}: a group needs a pattern and at least one setting")
        fields = dict(fields)
        frozen, until = fields.pop("frozen", False), fields.pop("frozen_until", 0)
        if frozen and (fields or until):
            raise InputError(f"{where}: a frozen group has no other settings; leave out {sorted(fields) or 'the rest'}")
        if until < 0:
            raise InputError(f"{where}: frozen_until {until} must be an epoch, at least 0")
        groups[pattern] = Group(dataclasses.replace(optimizer, **fields), frozen, until)
    return groups | {REST: Group(optimizer)}


def _check_type(where, name, value):
    if name == "frozen":
        fits, wanted = isinstance(value, bool), "true or false"
    elif name.startswith("clip_") and value is None:
        return
    else:
        fits, wanted = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    if not fits:
        raise InputError(f"{where}: {name} {value!r} must be {wanted}")


def labels(groups, tree):
    """Return a tree like `tree` with the first pattern that each leaf's path matches, or REST.

    A path is the names from the root, joined by "/". Patterns are those of `fnmatch`: `*` matches any string, also one
    that contains "/".

    >>> labels({"head/*": None, "*/bias": None}, {"head": {"bias": 0}, "stem": {"bias": 0, "kernel": 0}})
    {'head': {'bias': 'head/*'}, 'stem': {'bias': '*/bias', 'kernel': ''}}
    """

    def label(path, _):
        name = path_name(path)
        return next((pattern for pattern in groups if pattern != REST and fnmatchcase(name, pattern)), REST)

    return jax.tree.map_with_path(label, tree)


def path_name(path):
    """Return "head/kernel" for the path (DictKey("head"), DictKey("kernel"))."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def per_group(groups, make):
    """Transform the parameters of each group by `make(pattern, group)`. A single group is not partitioned."""
    if len(groups) == 1:
        return make(*next(iter(groups.items())))
    names = {pattern: f"group{i}" for i, pattern in enumerate(groups)}  # names of checkpoint items have no "/" and "*"

    def name(tree):
        return jax.tree.map(names.get, labels(groups, tree))

    return optax.partition({names[pattern]: make(pattern, group) for pattern, group in groups.items()}, name)


def freeze(transform, groups):
    """Apply `transform` to the parameters that are not frozen. Frozen ones have no state, and their updates are zero.

    Moments of batch norms are not parameters. They continue to change, as in PyTorch.
    """
    if not any(group.frozen for group in groups.values()):
        return transform

    def name(tree):
        return jax.tree.map(lambda label: "frozen" if groups[label].frozen else "trained", labels(groups, tree))

    return optax.partition({"trained": transform, "frozen": optax.set_to_zero()}, name)


def check_matches(groups, params):
    """Raise InputError if a pattern matches no parameter, weight decay no kernel, or if all parameters are frozen."""
    found = {pattern: [] for pattern in groups}
    for path, label in jax.tree.leaves_with_path(labels(groups, params)):
        found[label].append(path_name(path))
    everything = [path_name(path) for path, _ in jax.tree.leaves_with_path(params)]
    for pattern, paths in found.items():
        if pattern == REST:
            continue
        # The patterns of Config.freeze are frozen groups, too.
        frozen = groups[pattern].frozen or groups[pattern].frozen_until
        where = f"{'freeze (optimizer.groups)' if frozen else 'optimizer.groups'} {pattern!r}"
        if not paths and any(fnmatchcase(path, pattern) for path in everything):
            raise InputError(f"{where}: earlier patterns match all of its parameters; put it before them")
        if not paths:
            raise InputError(f"{where} matches no parameter; {_nearest(pattern, everything)}")
        decay = groups[pattern].optimizer.weight_decay
        if decay > 0 and decay != groups[REST].optimizer.weight_decay and not any(map(_is_kernel, paths)):
            raise InputError(f"{where}: weight_decay {decay} does nothing, because no kernel matches")
    if all(groups[pattern].frozen for pattern, paths in found.items() if paths):
        raise InputError(
            f"freeze (optimizer.groups) {' '.join(list(found)[:-1])} leaves nothing to train; leave out a pattern"
        )


def _is_kernel(path):
    return path.rpartition("/")[2] == "kernel"


def _nearest(pattern, paths):
    """Return the hint 'did you mean X?' with a similar path or pattern, or else the patterns of the top level."""
    parts = [path.split("/") for path in paths]
    below = {"/".join(names[:i]) + "/*" for names in parts for i in range(1, len(names))}
    close = difflib.get_close_matches(pattern, sorted(below.union(paths)), n=1, cutoff=0.5)
    return choices(pattern, close or {names[0] + ("/*" if names[1:] else "") for names in parts})
