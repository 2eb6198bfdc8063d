"""Share of seeds for which each figure's claim holds: `python tests/pass_rates.py [NAME ...] [--seeds 20] [--limit S]`.

Prints one row of a Markdown table per figure. A figure that is not through its seeds after `limit` seconds stops there,
and its row tells how many seeds were tried.
"""

import argparse
import tempfile
import time

import jax

from deepjax import figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="figures; default: all")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds for a figure")
    parser.add_argument("--data-dir", default="", help="folder of the data set")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as kept:  # programs are the same for all seeds of a figure
        jax.config.update("jax_compilation_cache_dir", kept)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        print("| figure | claim holds | seeds that failed | seconds for a seed |\n| --- | --- | --- | --- |")
        for name in arguments.names or figures.FIGURES:
            print(row(name, arguments), flush=True)


def row(name, arguments):
    """Return the row of a figure."""
    data_dir = arguments.data_dir if "data_dir" in figures.find(name).USES else ""
    start, failed, seed = time.perf_counter(), [], 0
    while seed < arguments.seeds and time.perf_counter() - start < arguments.limit:
        if not figures.run(name, figures.Settings(seed, data_dir=data_dir)).claim.holds:
            failed.append(str(seed))
        seed += 1
    seconds = (time.perf_counter() - start) / seed
    return f"| {name} | {seed - len(failed)} of {seed} | {', '.join(failed)} | {seconds:.1f} |"


if __name__ == "__main__":
    main()
