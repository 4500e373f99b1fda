"""What Airflow itself calls: operators, sensors, triggers, links, alerts. The only package that imports Airflow.

Imports all of `orchard`.
"""
