"""The folder of a run: config and data records, checkpoints, metrics, plots."""
