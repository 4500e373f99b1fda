"""The URI of a dataset, and the objects that lie below it on S3.

It may import the modules `errors` and `storage`.
"""
