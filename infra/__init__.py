"""Uploads a release to S3, reads prices, and builds what other Airflows and projects install.

It imports no other code of the project: releases and wheels contain the code as files.
"""
