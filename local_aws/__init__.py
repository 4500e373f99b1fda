"""An AWS for one machine: moto for S3, IAM, STS, Glue and EC2, and an EMR that really runs what it is told."""
