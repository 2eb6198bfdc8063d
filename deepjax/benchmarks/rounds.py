"""Fair turns: several programs, one process each, all compiled first, then measured in rounds.

In each round every program takes steps for some time, one program after the other. What slows the machine down for
longer than a round slows all of them, so quotients of two programs are taken within rounds. A round in which other
processes disturbed a turn is dropped.
"""

import contextlib
import statistics
from typing import Any

import numpy as np

from deepjax.benchmarks.process import Ended, Process

TURN = 0.3  # seconds: a turn is one step, or as many as fit
FOREIGN = 0.1  # processor cores: a turn in which other processes used more is disturbed
CAP = 1800.0  # seconds to compile one program, or for one turn


def take(jobs, rounds, log, turn=TURN, cap=CAP):
    """Compile the programs of all jobs, then let them take turns.

    Args:
      jobs: {name: job of a `worker`}.
      rounds: number of rounds. One more comes first and is not counted.
      log: function called with each line of progress.
      turn: seconds of a turn.
      cap: seconds that a program may take to compile, and for one turn. One that takes longer is stopped.

    Returns:
      (facts, rounds). facts is {name: {"stopped": reason or None, "loss": before the first step, "peak": bytes, the
      numbers of its phases, "trace", "lower", "compile": seconds}}. rounds is a list of {name: {"seconds": mean of a
      step, "steps", "foreign": cores that other processes used}}; stopped programs are left out.
    """
    facts, taken = {}, []
    with contextlib.ExitStack() as stack:
        running = {}
        for name, job in jobs.items():
            process = stack.enter_context(Process(job))
            facts[name] = _prepare(process, cap)
            if not facts[name]["stopped"]:
                running[name] = process
            log(f"  {name}: {facts[name]['stopped'] or 'compiled'}")
        for number in range(rounds + 1):
            record = {}
            for name in rotated(list(running), number):
                answer = _turn(running[name], turn if number else 0.0, cap)
                if isinstance(answer, str):
                    facts[name]["stopped"] = answer
                    running.pop(name).end()
                    continue
                facts[name]["peak"] = answer["peak"]
                facts[name].setdefault("loss", answer["loss"])
                seconds = answer["seconds"]
                record[name] = {"seconds": statistics.fmean(seconds), "steps": len(seconds)}
                record[name]["foreign"] = answer["foreign"]
            taken += [record] if number else []
    return facts, [{name: turn for name, turn in record.items() if name in running} for record in taken]


def rotated(names, number):
    """Return the names in the order of a round.

    >>> rotated(["a", "b", "c"], 1)
    ['b', 'c', 'a']
    """
    first = number % len(names) if names else 0
    return names[first:] + names[:first]


def _prepare(process, cap):
    found: dict[str, Any] = {"stopped": None}
    try:
        for phase in process.phases(cap):
            name = phase.pop("phase")
            if "seconds" in phase:
                found[name] = phase.pop("seconds")
            found |= phase
    except Ended as end:
        process.end()
        found["stopped"] = str(end)
    return found


def _turn(process, seconds, cap):
    """Return the worker's answer, or the reason why there is none."""
    try:
        return process.turn(seconds, cap)
    except Ended as end:
        return str(end)


# Statistics


def keep(rounds):
    """Return (rounds to use, number of disturbed rounds, whether these are used nevertheless).

    A round is disturbed if other processes used more than `FOREIGN` cores during any of its turns. Disturbed rounds are
    dropped, unless less than a third would be left.
    """
    quiet = [record for record in rounds if all((turn["foreign"] or 0.0) <= FOREIGN for turn in record.values())]
    busy = 3 * len(quiet) < len(rounds)
    return rounds if busy else quiet, len(rounds) - len(quiet), busy


def spread(values):
    """Return {"median", "low", "high"} of numbers: their median and quartiles. None of none."""
    if not len(values):
        return None
    low, median, high = np.percentile(values, (25, 50, 75))
    return {"median": float(median), "low": float(low), "high": float(high)}


def seconds_of(rounds, name):
    """Return the mean seconds of a step in each round in which a program took part."""
    return [record[name]["seconds"] for record in rounds if name in record]


def quotients(rounds, name, other):
    """Return the seconds of a program divided by those of another one, round by round."""
    both = [record for record in rounds if name in record and other in record]
    return [record[name]["seconds"] / record[other]["seconds"] for record in both]


def geometric_mean(values):
    """Return the geometric mean of numbers, None of none.

    >>> round(geometric_mean([1.0, 4.0]), 9)
    2.0
    """
    return statistics.geometric_mean(values) if values else None
