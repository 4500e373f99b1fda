"""EMR on EC2: `api` is the protocol, `checks` validates requests, `operations` answers them.

`service` holds the clusters, `control` changes their course, `life` runs them, and `runner` starts their commands.
It may import `local_aws.signature` and `local_aws.state`, and nothing else of local_aws.
"""
