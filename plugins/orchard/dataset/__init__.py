"""The URI of a dataset, and what lies below it on S3.

It may import the modules `errors` and `storage`.
"""
