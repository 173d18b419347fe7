"""python -m d2_deformable COMMAND ...: the command line d2-deformable."""

from d2_deformable.cli.main import main

main()
