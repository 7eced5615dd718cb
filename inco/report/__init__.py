"""Reports: one HTML file about a run, and tables and a page that compare runs.

They open offline and fetch nothing.
"""

from inco.report.comparison import write_comparison
from inco.report.run_page import write_run

__all__ = ["write_comparison", "write_run"]
