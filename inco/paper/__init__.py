"""The InCo paper apart from the simulator: its figures, and pictures of finished models."""
