"""The checks before money is spent, one module per service: s3, emr, ec2, iam. `checks` runs them all.

Imports all of `orchard` except `orchard.airflow`.
"""
