"""The transient EMR cluster: instance types, the RunJobFlow request, tags, and all calls to EMR.

Imports `orchard.dataset`, `orchard.errors`, `orchard.settings` and `orchard.storage`.
"""
