"""How fast InCo is, beside what the same arithmetic costs and what others take: `python -m
benchmarks w1|w2|scale|gpu|startup`.
"""
