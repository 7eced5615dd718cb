"""Records: all that reads or writes a run's folder.

`record.py` has the rows and the lock, `checkpoint.py` the server's tensors, `runs.py` reads
folders for reports and figures.
"""
