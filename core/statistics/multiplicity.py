"""More than one finalist: certifying several candidates on the same data spends the risk that is there for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["holm", "holm_shares"]


def holm_shares(finalists: int) -> list[float]:
    """Return the parts of alpha that Holm's (1979) steps test at: 1/m, 1/(m − 1), … 1."""
    return [1 / (finalists - step) for step in range(finalists)]


def holm(certified_at: Sequence[Callable[[float], bool]]) -> list[bool]:
    """Return which finalists are certified, so that the chance of any false one stays under alpha.

    certified_at: per finalist, whether all its goals hold when each may spend that share of its alpha (`judge`'s
    alpha_share; a candidate's goals must all hold, which needs no correction of its own). The best of the data decides
    the order, as Holm's smallest p-value does: whoever holds at 1/m is in, then the others are asked at 1/(m − 1), ….
    """
    accepted = [False] * len(certified_at)
    for share in holm_shares(len(certified_at)):
        found = [i for i, holds in enumerate(certified_at) if not accepted[i] and holds(share)]
        if not found:
            break
        # One step a time: each acceptance lets the others spend more.
        accepted[found[0]] = True
    return accepted
