"""Whether a decoder whose states were turned says what it said before."""

from __future__ import annotations

from typing import Any

from drupe.core.errors import PassError

__all__ = ["Probe"]

_LARGEST_CHANGE = 1e-3
"""Largest change of a logit, as a share of the largest logit, that rounding in float32 accounts for."""


class Probe:
    """Tokens ids (1, 32), drawn by a generator, and what a network says of them when the probe is made."""

    def __init__(self, network: Any, generator: Any) -> None:
        import torch

        self.ids = torch.randint(0, network.config.vocab_size, (1, 32), generator=generator).to(network.device)
        self.said = self._logits(network)

    def check(self, pass_name: str, network: Any) -> float:
        """Return the largest change of a logit, as a share of the largest. Raises PassError where it is too large."""
        architecture = f"this architecture ({type(network).__name__}) does more with its states than the pass knows"
        try:
            change = float((self._logits(network) - self.said).abs().max() / self.said.abs().max())
        except (RuntimeError, TypeError, ValueError) as error:
            raise PassError(f"{pass_name}: the changed blocks do not run ({error}); {architecture}") from error
        if not change < _LARGEST_CHANGE:
            raise PassError(
                f"{pass_name}: turning the states changed the logits by {change:.2g} of the largest; {architecture}"
            )
        return change

    def _logits(self, network: Any) -> Any:
        import torch

        with torch.no_grad():
            return network(input_ids=self.ids, use_cache=False).logits
