"""A run's life: from a command line to a finished folder.

Read `cli.py`, then `launch.py`: rank 0 and its session. `resume.py` finds where to start,
`summary.py` gathers what is known at the end.
"""
