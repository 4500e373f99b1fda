"""What is set up once in an AWS account, and what is uploaded for each version of Orchard.

It imports nothing of Orchard: a release contains the code of the steps as files.
"""
