"""Parameters, speed and memory of the networks, measured on this machine in one run: a table, a JSON and a picture.

Times depend on the machine and on what else it does; the ratios travel better.
"""

from splitshuffle_gan.benchmark.options import BenchmarkOptions
from splitshuffle_gan.benchmark.report import table
from splitshuffle_gan.benchmark.run import benchmark

__all__ = ["BenchmarkOptions", "benchmark", "table"]
