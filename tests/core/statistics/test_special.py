from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from drupe.core.statistics.special import (
    beta_quantile,
    incomplete_beta,
    log_factorials,
    normal_quantile,
    normal_tail,
)

SHAPES = st.floats(0.5, 5000)


@given(SHAPES, SHAPES, st.floats(0, 1))
def test_incomplete_beta(a: float, b: float, x: float) -> None:
    assert incomplete_beta(a, b, x) == pytest.approx(special.betainc(a, b, x), rel=1e-9, abs=1e-13)


@given(SHAPES, SHAPES, st.floats(0.001, 0.999))
def test_beta_quantile(a: float, b: float, p: float) -> None:
    assert beta_quantile(a, b, p) == pytest.approx(special.betaincinv(a, b, p), rel=1e-8)


def test_large_counts() -> None:
    assert incomplete_beta(900_000, 100_001, 0.9) == pytest.approx(special.betainc(900_000, 100_001, 0.9), rel=1e-6)


@given(st.floats(-8, 8))
def test_normal(z: float) -> None:
    assert normal_tail(z) == pytest.approx(special.ndtr(-z), rel=1e-12)
    if abs(z) < 5:
        assert normal_quantile(1 - normal_tail(z)) == pytest.approx(z, abs=1e-6)


def test_factorials() -> None:
    assert log_factorials(200) == pytest.approx(special.gammaln([k + 1.0 for k in range(201)]))


def test_a_verdict_does_not_import_scipy() -> None:
    script = """
import sys
from drupe.core.metrics import Measurement
from drupe.core.statistics.verdicts import judge
from drupe.core.study import Goal
rows = {str(i): (float(i < 57),) for i in range(60)}
measured = Measurement("acc-exact", 0.95, "", "higher", 60, rows=rows, proportion=True)
assert judge(Goal("acc-exact", "threshold", 0.8, "higher", 0.95), measured).status == "PASS"
assert judge(Goal("acc-exact", "max-degradation", 0.06, "higher", 0.95), measured, measured).status == "PASS"
assert "scipy" not in sys.modules, "scipy costs 0.15 s"
"""
    subprocess.run([sys.executable, "-c", script], check=True)
