"""The commands of d2-deformable."""
