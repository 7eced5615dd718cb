"""From the command line to a run: schemas, validation, building, launching.

Hydra and OmegaConf appear here and in run.py alone.
"""
