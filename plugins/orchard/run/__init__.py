"""A run from its params to its publication: names, plan, steps, turn, summary, publish; the verdict and the janitor.

It may import all of `orchard` except `orchard.preflight` and `orchard.airflow`.
"""
