"""The system deepjax: networks of the zoo with their usual options; inference with folded batch norms."""

from deepjax import zoo
from deepjax.benchmarks.programs import abstract_variables, start
from deepjax.benchmarks.systems.jax_program import Inference, Training, cast, count, option
from deepjax.benchmarks.workloads import Workload, data
from deepjax.transforms import fold_batch_norm


def network(work, dtype="float32"):
    """Return the network of a workload."""
    options = {**work.options, "dtype": option(dtype)}
    return zoo.create(work.network, options, num_classes=None if work.network == "lstm" else work.classes)


def load(job):
    """Return the program of a job."""
    work = Workload(**job["workload"])
    model = network(work, job["dtype"])
    if job["kind"] == "train":
        return Training(model, work, getattr(model, "auxiliary_weight", 0.0))
    variables = start(abstract_variables(model, data(work)[0]))
    folding = fold_batch_norm(model, variables, data(work)[0])
    return Inference(
        lambda variables, x: folding.model.apply(variables, x, train=False),
        cast(folding.variables, job["dtype"]),
        work,
        count(variables["params"]),
    )
