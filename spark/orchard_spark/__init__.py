"""The code that the three Spark steps share. A cluster receives it as one zip file (`--py-files`).

It imports PySpark and the packages in bootstrap/requirements.txt, and no other code of the project.
"""
