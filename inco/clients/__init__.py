"""Clients: who they are, how one trains, and what it keeps and uploads.

Read `trainer.py` first: one client's round. `local.py` has its batches and optimizer, `pool.py` its
models, `store.py` the vectors that it keeps, `uplink.py` what happens to its upload.
`population.py` and `capacity.py` say who takes part, and with which model size.
"""
