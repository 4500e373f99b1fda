"""EMR on EC2: `api` (the wire), `model` (clusters, steps, states), `life` (what happens), `runner` (processes)."""
