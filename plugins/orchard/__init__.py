"""What the DAGs do, in layers: errors, storage; dataset; settings; cluster; tables; release; run; preflight; airflow.

A layer imports only the layers before it in this list. Only `orchard.airflow` imports Airflow. Use absolute imports:
Airflow adds `plugins/` to the path, and skips `orchard/` when it searches for plugins (plugins/.airflowignore).
"""
