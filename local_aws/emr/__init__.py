"""EMR on EC2.

`api` is the wire, `model` what clusters and steps are, `life` what happens to them; `runner` starts commands on a
`node`, each a `process`.
"""
