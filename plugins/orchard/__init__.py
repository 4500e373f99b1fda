"""What the DAGs do, in layers: errors, storage; dataset; settings; cluster; tables; release; run; preflight; airflow.

A layer imports only the layers before it in this list. Only `orchard.airflow` imports Airflow. Import the package
absolutely: Airflow puts `plugins/` on the path and skips `orchard/` when it looks for plugins (plugins/.airflowignore).
"""
