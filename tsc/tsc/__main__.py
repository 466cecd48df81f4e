"""`python -m tsc`."""

from tsc.cli import main

main(prog_name="tsc")
