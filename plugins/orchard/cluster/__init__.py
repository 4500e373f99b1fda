"""The transient EMR cluster: instance types, the RunJobFlow request, tags, and all calls to EMR.

It may import `orchard.dataset` and the modules `errors`, `settings` and `storage`.
"""
