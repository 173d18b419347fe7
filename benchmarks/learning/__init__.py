"""Experiments on what deformable networks learn, the source of docs/RESULTS.md."""
