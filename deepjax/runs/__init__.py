"""The folder of a run: its config and data records, checkpoints, metrics and plots."""
