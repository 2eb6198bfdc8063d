"""`deepjax search`."""

from dataclasses import asdict, dataclass, replace
from typing import Annotated

import tyro

from deepjax.cli.configs import chosen, docstring, load, with_file_options, without_config
from deepjax.cli.hints import option_names
from deepjax.cli.terminal import display, parse, table
from deepjax.config import Config, flatten, is_free
from deepjax.errors import InputError
from deepjax.fields import option, replaced

ONE_VALUE = ("data.name", "pretrained", "teacher", "freeze", "optimizer.groups")  # texts in which a comma is a comma


@dataclass(frozen=True)
class Search:
    """A config, whose options may be lists of values, separated by commas: all combinations are tried."""

    config: Annotated[Config, tyro.conf.arg(name="")] = option(inline=True)
    updates: int = option(200, at_least=1)
    """Updates of each candidate, or those of the whole run, if they are fewer."""
    together: int = option(16, at_least=1)
    """The most candidates that are trained at the same time, as one program. Those that differ in more than learning
    rate and weight decay are trained one after another. Fewer need less memory."""
    search_only: bool = False
    """Stop after the search. Otherwise the best candidate is trained in full."""


def search(arguments):
    """Try lists of values, such as --optimizer.learning-rate 0.01,0.1, and train the best in full."""
    if (path := chosen("search", arguments)) is None:
        return without_config(arguments)
    options, grid = _read(path, arguments)
    from deepjax import training

    limits = {"updates": options.updates, "together": options.together}
    record = training.search(options.config, grid, path.stem, log=display(), **limits)
    found = record["candidates"]
    rows = [(*one["options"].values(), one["result"], _note(one, record["best"])) for one in found]
    table((*grid, f"validation, by {record['by']}", ""), rows)
    if record["best"] is None:
        diverged = sum(one["metrics"] is None for one in found)
        print(f"none of the {len(found)} candidates is better than chance, {diverged} diverged; nothing is trained")
        return 1
    best = " ".join(f"{_name(field)}{value}" for field, value in record["best"].items())
    print(f"best: {best}")
    if not options.search_only:
        config = options.config
        for field, value in record["best"].items():
            config = replaced(config, field, value)
        training.train(config, path.stem, log=display())
    return 0


def _name(field):
    if field.startswith("model_options."):
        return f"--model-options {field.partition('.')[2]}="
    return f"--{field.replace('_', '-')} "


def _note(candidate, best):
    if candidate["options"] == best:
        return "best"
    return "" if candidate["above_chance"] or candidate["metrics"] is None else "no better than chance"


def _read(path, arguments):
    """Return (Search with the first value of every list, {field: values}) from the words of the command line."""
    lists = _lists(arguments)
    if not lists and not {"-h", "--help"} & set(arguments):
        raise InputError(
            "a search needs an option with several values, such as --optimizer.learning-rate 0.001,0.01,0.1"
        )
    words = list(arguments)
    for i, (_, values) in lists.items():
        words[i] = values[0]
    default, prog = Search(load(path)), f"deepjax search {arguments[0]}"

    def read(words):
        options = parse(Search, words[1:], prog, docstring(path), default=default)
        return replace(options, config=with_file_options(options.config, default.config))

    def value_of(field, i, word):
        return flatten(asdict(read([*words[:i], word, *words[i + 1 :]]).config))[field]

    grid = {field: [value_of(field, i, word) for word in values] for i, (field, values) in lists.items()}
    return read(words), {field: list(dict.fromkeys(values)) for field, values in grid.items()}


def _lists(arguments):
    """Return {position of a word with commas: (field of Config, the words that it stands for)}.

    >>> _lists(["digits", "--optimizer.learning-rate", "0.1,1", "--model-options", "depth=2", "width=4,8"])
    {2: ('optimizer.learning_rate', ['0.1', '1']), 5: ('model_options.width', ['width=4', 'width=8'])}
    """
    known, found, field = set(option_names(Config)), {}, ""
    for i, word in enumerate(arguments):
        head, equals, values = word.rpartition("=")
        if word.startswith("--"):
            name = (head or word).replace("_", "-")
            field = name.removeprefix("--").replace("-", "_") if name in known else ""
        if "," in values and field and field not in ONE_VALUE and not is_free(Config, field):
            inner = f"{field}.{head}" if field == "model_options" else field
            found[i] = (inner, [f"{head}{equals}{value}" for value in values.split(",")])
    return found
