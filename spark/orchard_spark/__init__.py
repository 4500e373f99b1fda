"""What the three Spark steps are made of; shipped to a cluster as one zip file (`--py-files`)."""
