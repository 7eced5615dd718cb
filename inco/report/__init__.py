"""Reports that open offline: the page of a run, and a comparison of runs."""

from inco.report.comparison import write_comparison
from inco.report.run_page import write_run

__all__ = ["write_comparison", "write_run"]
