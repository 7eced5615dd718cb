"""Base algorithms: arithmetic on a client's vectors and on the server's.

The base class is FedAvg; a method overrides what differs.
"""
