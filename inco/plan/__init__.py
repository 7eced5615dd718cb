"""`python -m inco.plan`: what a sweep will take, before it is started: runs, rounds, hours, memory
and disk.
"""
