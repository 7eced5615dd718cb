"""Diagnostics: what is measured about models beside their accuracy."""

from __future__ import annotations

from inco.types import Aggregate


class NoDiagnostics:
    """Measure nothing."""

    def on_round(self, round: int, aggregate: Aggregate) -> dict[str, float]:
        """Return the round's extra metrics."""
        return {}
