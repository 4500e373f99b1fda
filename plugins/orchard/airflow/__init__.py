"""What Airflow itself calls: operators, sensors, triggers, links, alerts, identity. Only this package imports Airflow.

Imports all of `orchard`.
"""
