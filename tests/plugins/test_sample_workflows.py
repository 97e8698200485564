"""Public workflows for encoders and vision run end to end on stand-ins; the rest of them in benchmarks/."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.sample_runs import FOLDER, Sample, run_sample
from benchmarks.sample_workflows import SAMPLES

# One of them for every change: the others take minutes of training.
QUICK = [sample for sample in SAMPLES if "gemma" in sample.file]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the public workflow files are not at {FOLDER}"),
]


@pytest.mark.parametrize("sample", QUICK, ids=[sample.file.split("__")[0] for sample in QUICK])
def test_a_public_workflow_gives_a_smaller_or_faster_model_of_the_stated_quality(
    sample: Sample, tmp_path: Path
) -> None:
    found = run_sample(sample, tmp_path)
    assert found.kept, found.quality
    # A source that a script makes has no size of its own; its graph must be faster then.
    assert found.bytes_after < found.bytes_before or found.ms_after < found.ms_before
