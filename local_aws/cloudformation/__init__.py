"""CloudFormation: stacks of templates, whose resources it creates by calls to the other services of the local AWS.

moto's CloudFormation is not used, because it reports CREATE_COMPLETE for types and properties that it ignores. This one
refuses a template with a type, a property or a function that it does not know.
"""
