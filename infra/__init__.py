"""Uploads a release to S3.

It imports no other code of the project: a release contains the code of the steps as files.
"""
