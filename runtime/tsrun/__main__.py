"""`python -m tsrun` is the command `tsrun`."""

from tsrun.cli import main

main()
