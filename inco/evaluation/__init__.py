"""Evaluation: every model size on the whole test set.

Read `evaluator.py` first. `shared_prefix.py` runs the steps that sizes share once; `batchnorm.py`
measures BatchNorm before scoring.
"""
