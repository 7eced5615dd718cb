"""The engine: clients spread over ranks, and one exact reduction a round.

Read `engine.py` first; `ranks.py` is all there is of torch.distributed. `workers.py` starts and
watches local processes, without torch.
"""
