"""What lies below a dataset's prefix on S3.

It may import the modules `errors`, `settings` and `storage`.
"""
