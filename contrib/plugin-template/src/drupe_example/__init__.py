"""ClipWeights, a pass for Drupe."""
