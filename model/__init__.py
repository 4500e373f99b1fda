"""Exports the model that the features step runs. This needs TensorFlow, which cluster nodes do not have.

It imports no other code of the project. It imports TensorFlow only when it builds a model.
"""
