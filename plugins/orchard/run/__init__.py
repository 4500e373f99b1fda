"""A run from its params to its publication: names, plan, steps, turn, summary, publish; the verdict and the janitor.

Imports all of `orchard` except `orchard.preflight` and `orchard.airflow`.
"""
