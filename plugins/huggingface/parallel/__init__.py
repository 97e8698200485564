"""Models whose layers are split over ranks that run together (tensor parallelism)."""
