"""The URI of a dataset, and what lies below it on S3.

Imports `orchard.errors` and `orchard.storage`.
"""
