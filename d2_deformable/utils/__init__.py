"""Files, config files and provenance for all packages; imports no other package of ours."""
