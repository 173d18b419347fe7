"""The experiments behind docs/RESULTS.md: what do deformable networks learn?"""
