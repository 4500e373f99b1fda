"""Exports the model that the features step runs. Needs TensorFlow, which cluster nodes do not have.

Imports nothing else of the project, and TensorFlow only when a model is built.
"""
