"""The contract kit for the tests of plugins; see `drupe.core.testing`."""

from __future__ import annotations

from drupe.core.testing import *  # noqa: F403
from drupe.core.testing import __all__ as __all__
