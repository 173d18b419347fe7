"""Command-line helpers shared by the commands of tools/."""
