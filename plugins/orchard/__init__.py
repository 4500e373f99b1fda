"""Orchard's Airflow side: plain functions first, operators thin. Import it absolutely (see plugins/.airflowignore)."""
