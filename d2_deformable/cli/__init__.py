"""The command line: what the commands of tools/ have in common."""
