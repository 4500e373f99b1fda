"""A demonstration of the whole pipeline on one machine: `python -m demo` runs it once and shows its progress.

It may import `sandbox`, which contains everything that it starts. Nothing imports `demo`.
"""
