"""What is claimed about speed, measured: each program writes its figures beside itself."""
