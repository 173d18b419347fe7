"""What deformable networks learn: the experiments behind docs/RESULTS.md."""
