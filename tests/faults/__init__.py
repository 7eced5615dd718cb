"""One test a fault, R1 to R28, numbered as in docs/reliability.md.

They stand alone, and take minutes together.
"""
