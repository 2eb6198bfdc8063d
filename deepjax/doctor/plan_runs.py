"""Can a network learn a few examples by heart?"""

import numpy as np
import optax

from deepjax.doctor import facts, trials
from deepjax.doctor.evidence import Evidence

RATES, STEPS = (0.1, 1.0, 10.0), 500


def fits(evidence: Evidence, count: int) -> float:
    """Return the best skill on so many examples, of Adam with the rates 0.001, 0.01 and 0.1 in 500 steps.

    Return 1 if the budget does not allow so many steps.
    """
    subject = evidence.subject
    rows = np.random.default_rng(0).permutation(subject.examples)[:count]
    inputs, targets = subject.rows(rows)
    few = subject.with_(inputs=inputs, targets=targets, batch_size=len(rows), epochs=STEPS, optimizer=optax.adam(0.01))
    described = facts.describe_targets(targets)
    described = described if described.kind == evidence.targets.kind else evidence.targets
    steps = evidence.steps(few, 0.1, len(RATES))
    if steps < STEPS:
        return 1.0  # too few to tell
    run = trials.Trainer(few, described, evidence.loss.expects, evidence.key, RATES).advance(steps).result()
    return max(evidence.skill(run, i) for i in range(len(RATES)))
