"""The Iceberg tables in the Glue catalog: their schemas, and the commits that publish a run.

It may import `orchard.cluster`, `orchard.dataset`, and the modules `errors`, `settings` and `storage`.
"""
