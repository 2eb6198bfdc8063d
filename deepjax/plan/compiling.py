"""Compile one training step in a child process, under a time limit: `measure` starts the process, `main` runs in it.

A compilation cannot be interrupted, and running out of memory ends its process. Therefore it needs a separate process.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from typing import Any

from deepjax.errors import InputError
from deepjax.training.signals import raising


def measure(config, found, remat, seconds) -> dict[str, Any]:
    """Compile the step of a config with one value of `remat` in a child process.

    Args:
      config: a `deepjax.config.Config`.
      found: `inputs.Inputs`.
      remat: value of the network's option; None: the network has no such option.
      seconds: time limit, starting the process included.

    Returns:
      {"arguments", "outputs", "temporaries", "aliased", "code": bytes of one device, from XLA's memory analysis,
      "seconds": time to lower and compile}, or {"stopped": the reason why there is no result}.
    """
    request = json.dumps({"config": dataclasses.asdict(config), "inputs": found._asdict(), "remat": remat})
    # The child must not reserve most of a GPU's memory, which other processes may hold, and must really compile.
    changes = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    try:
        with raising():
            done = subprocess.run(
                [sys.executable, "-m", "deepjax.plan.compiling"],
                input=request,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=seconds,
                env=os.environ | changes,
            )
    except subprocess.TimeoutExpired:
        return {"stopped": f"not compiled within {seconds:g} s"}
    if done.returncode:
        return {"stopped": _reason(done)}
    return json.loads(done.stdout.splitlines()[-1])


def _reason(done):
    """Return why a child process failed, in one line."""
    if done.returncode < 0:
        return f"the compiler was ended by signal {-done.returncode}; it may need more memory"
    lines = done.stderr.strip().splitlines()
    return " ".join(lines[-1].split())[:200] if lines else f"the compiler ended with exit code {done.returncode}"


def main():
    """Read a request from standard input, compile, print the result as one line of JSON."""
    from deepjax.config import Config, from_dict
    from deepjax.plan import inputs, step
    from deepjax.training.model import make_model

    request = json.loads(sys.stdin.read())
    config = from_dict(Config, request["config"])
    if request["remat"] is not None:
        config = step.with_remat(config, request["remat"])
    found = inputs.Inputs(**request["inputs"] | {"shape": tuple(request["inputs"]["shape"])})
    try:
        traced = step.make(config, found, make_model(config, step.outputs(config, found))).trace()
    except InputError as error:
        sys.exit(str(error))
    started = time.monotonic()
    analysis: Any = traced.lower().compile().memory_analysis()
    result = {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "aliased": analysis.alias_size_in_bytes,
        "code": analysis.generated_code_size_in_bytes,
        "seconds": time.monotonic() - started,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
