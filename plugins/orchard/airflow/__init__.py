"""What Airflow itself calls: operators, sensors, triggers, links, alerts. The only package that imports Airflow.

It may import all of `orchard`.
"""
