"""`deepjax doctor --nan`."""


def hunt_nan(config, name, steps=1000):
    """Train a config in memory until something is not finite, and print which operation made it so.

    Args:
      config: the parsed Config.
      name: name of the run, as of `training.train`.
      steps: training steps at most.

    Returns:
      The exit code: 1 if something was not finite, else 0.
    """
    from deepjax.cli.terminal import display
    from deepjax.training import first_non_finite

    failed = first_non_finite(config, name, steps=steps, log=display())
    print(failed or f"loss, gradient and parameters are finite in all of the first {steps} steps, or in the whole run")
    return 1 if failed else 0
