"""What Airflow itself calls: operators, sensors, triggers, links, alerts, identity. Only this package imports Airflow.

It may import all of `orchard`.
"""
