"""The system deepjax: networks of the zoo with their usual options; inference with folded batch norms."""

from typing import Any

import flax.linen as nn

from deepjax import cpu, zoo
from deepjax.benchmarks.programs import abstract_variables, start
from deepjax.benchmarks.systems.jax_program import Inference, Training, cast, count, option
from deepjax.benchmarks.workloads import Workload, data
from deepjax.layers import LSTM, Dense
from deepjax.transforms import fold_batch_norm


class LSTMs(nn.Module):
    """Embedding, layers of LSTMs, logits at each step."""

    vocabulary: int
    width: int
    layers: int
    dtype: Any = None

    @nn.compact
    def __call__(self, words, *, train: bool):
        """int [batch, time] -> logits [batch, time, vocabulary]."""
        x: Any = nn.Embed(self.vocabulary, self.width, dtype=self.dtype)(words)
        for _ in range(self.layers):
            x, _ = LSTM(self.width, dtype=self.dtype)(x)
        return Dense(self.vocabulary, dtype=self.dtype)(x)


def network(work, dtype="float32"):
    """Return the network of a workload."""
    options = {**work.options, "dtype": option(dtype)}
    return LSTMs(**options) if work.network == "lstm" else zoo.create(work.network, options, num_classes=work.classes)


def load(job):
    """Return the program of a job."""
    work = Workload(**job["workload"])
    model = network(work, job["dtype"])
    if job["kind"] == "train":
        return Training(model, work, getattr(model, "auxiliary_weight", 0.0), cpu.compiler_options())
    variables = start(abstract_variables(model, data(work)[0]))
    folding = fold_batch_norm(model, variables, data(work)[0])
    return Inference(
        lambda variables, x: folding.model.apply(variables, x, train=False),
        cast(folding.variables, job["dtype"]),
        work,
        count(variables["params"]),
    )
