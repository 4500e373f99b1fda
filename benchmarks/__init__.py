"""Programs that measure how fast Orchard is. Each writes its results as JSON into this folder.

They may import everything except `demo` and `tests`. Nothing imports them.
"""
