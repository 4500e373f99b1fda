"""EMR on EC2: `api` is the protocol, `checks` validates requests, `operations` responds to them.

`service` holds the clusters, `control` changes their state, `life` runs them, `step_loop` runs their steps, and
`runner` starts their commands.
It may import `local_aws.signature` and `local_aws.state`, and nothing else of local_aws.
"""
