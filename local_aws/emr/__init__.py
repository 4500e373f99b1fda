"""EMR on EC2.

`api` is the wire, `checks` what it refuses, `operations` what it answers. `model` is what clusters and steps are,
`life` what happens to them. `runner` starts commands on a `node`, each a `process`; `service` holds it all together.
"""
