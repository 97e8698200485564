"""Surgeons: small, named changes to a graph that GraphSurgeries applies one after another."""
