"""Server optimizers: how an update is added to the global model."""

from __future__ import annotations

from torch import Tensor


class Average:
    """Add the update as it is: w <- w + update (a server learning rate of one)."""

    def init(self, w: Tensor) -> dict[str, Tensor]:
        """Return the optimizer's own vectors at the start; none here."""
        return {}

    def step(self, w: Tensor, update: Tensor, covered: Tensor, state: dict[str, Tensor]) -> None:
        """Change `w` [P] in place. Coordinates that are not `covered` (bool [P]) stay as they are."""
        w.add_(update)
