#!/usr/bin/env python
"""Moved to `d2-deformable proposals`; this path goes after one release."""

from d2_deformable.cli.main import moved

if __name__ == "__main__":
    moved("proposals")
