"""`python -m cloudai_benchmarks`."""

from cloudai_benchmarks.cli import main

main(prog_name="cloudai_benchmarks")
