"""`python -m inco.doctor`: what this machine is, and whether InCo computes rightly on it.

`products.py` compares the convolutions, matrix products and attention of small models with float64;
`runs.py` compares runs that must have the same bits; `checks.py` turns both, and what surrounds
them, into lines; `__main__.py` prints these.
"""
