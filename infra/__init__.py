"""What is set up once in an AWS account, and what is uploaded for each version."""
