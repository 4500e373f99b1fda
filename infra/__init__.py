"""Creates a deployment's AWS resources, uploads releases, reads prices, and builds what other Airflows install.

It imports no other code of the project: releases and wheels contain the code as files.
"""
