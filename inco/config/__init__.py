"""From the command line to a run: schemas, validation, building, launching.

Hydra and OmegaConf appear here, in `inco/run/` and in run.py alone.
"""
