"""A run's life: from a command line to a finished folder.

Read `cli.py`, then `launch.py` (ranks and retries) and `session.py` (what rank 0 trains and
records). `resume.py` finds where to start, `summary.py` gathers what is known at the end.
"""
