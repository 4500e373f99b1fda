"""A complete Orchard on one machine: the local AWS, an uploaded release, images, and Airflow's processes.

Tests, `docker/`, `benchmarks/` and `demo/` build on it. It may import `infra`, and runs the local AWS and Airflow as
processes. Only `sandbox.dag_run`, which is such a process, imports Airflow.
"""
