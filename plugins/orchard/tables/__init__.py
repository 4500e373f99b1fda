"""The Iceberg tables in the Glue catalog: their schemas, and the commits that publish a run.

Imports `orchard.dataset`, `orchard.errors`, `orchard.settings` and `orchard.storage`.
"""
