"""`vllm bench serve`, whose command does not start in the builds for processors: it asks for the version of a package of another name."""

from argparse import ArgumentParser

from vllm.benchmarks.serve import add_cli_args, main

parser = ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
