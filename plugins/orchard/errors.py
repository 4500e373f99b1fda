"""What all errors have in common that no second try can mend."""


class WillNotHeal(Exception):
    """The run cannot go on as it was asked for; its message says what to change. No task is tried again after it."""
