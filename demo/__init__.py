"""A demonstration of the whole pipeline on one machine: `python -m demo` runs it once and shows its progress.

It may import `sandbox`, which starts the local AWS and Airflow. Nothing imports `demo`.
"""
