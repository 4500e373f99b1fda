"""What Airflow's UI shows about a task. For a function with @task, Airflow itself takes the docstring."""

import inspect


def first_paragraph(documented: type) -> str:
    """Return the first paragraph of a class's docstring: what its tasks do. The rest is for developers.

    >>> from orchard.airflow.operators import AddStepOperator
    >>> first_paragraph(AddStepOperator)
    'Add one step, or adopt the one that an earlier attempt added. Return its id.'
    """
    return (inspect.getdoc(documented) or "").partition("\n\n")[0]
