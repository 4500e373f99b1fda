"""Fault injection: `rules` decides which calls fail and how, `http` applies rules to requests, `clusters` to clusters.

It imports `local_aws.emr` and `local_aws.signature`; `local_aws.emr` never imports it.
"""
