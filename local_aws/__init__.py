"""A local AWS for development and tests: moto for S3, IAM, STS, Glue and EC2, and an EMR that really runs its steps.

It imports nothing else of this project, and no Airflow.
"""
