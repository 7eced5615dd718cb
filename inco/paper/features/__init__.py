"""Pictures of a finished run's models: `python -m inco.paper.features --help`."""
