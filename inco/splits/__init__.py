"""Splits: which of the server's coordinates the clients of each level hold."""
