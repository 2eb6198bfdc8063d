"""Side-by-side measurements. `depth` measures the cost of depth in deepjax, plain Flax and PyTorch."""
