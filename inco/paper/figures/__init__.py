"""The figures of the InCo paper, drawn from run folders: `python -m inco.paper.figures --list`."""
