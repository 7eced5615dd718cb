"""`python -m inco.doctor`: what this machine is, and whether InCo computes rightly on it."""
