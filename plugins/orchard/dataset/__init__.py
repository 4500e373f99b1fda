"""What lies below a dataset's prefix on S3.

Imports `orchard.errors`, `orchard.settings` and `orchard.storage`.
"""
