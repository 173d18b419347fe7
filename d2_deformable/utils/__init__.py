"""Files, config files and provenance for every package; imports no other package of ours."""
