"""What the three Spark steps share; a cluster gets it as one zip file (`--py-files`).

Imports PySpark and the libraries in bootstrap/requirements.txt, and nothing else of the project.
"""
