"""Why a part of a report cannot be shown."""


class Unavailable(Exception):
    """The API server cannot read what a report shows: why, and what to grant or change."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message, remedy)
        self.message, self.remedy = message, remedy
