"""The checks before money is spent, one module per service: s3, emr, ec2, iam, glue, sns, and one for a hold.

`checks` runs them all, and `simulation` asks IAM what a role may do.

It may import all of `orchard` except `orchard.airflow`.
"""
