"""Why an input object is rejected: a fixed set of reasons, and the exception that carries one of them."""

# The values of the column `reason` in the rejects dataset. Add reasons, but never rename one: users filter by them.
REASONS = {
    "unreadable_key": "the object's key is not valid as a Hadoop path, or is not UTF-8",
    "deleted": "the object was deleted after it was listed",
    "changed": "the object was overwritten after it was listed",
    "archived": "the object is in an archive such as S3 Glacier: restore it, then run again",
    "forbidden": "S3 denies the object or its KMS key: the nodes' role needs s3:GetObject and kms:Decrypt",
    "too_many_bytes": "the object is larger than max_bytes",
    "empty": "the object has no bytes",
    "unknown_format": "the bytes are not a JPEG, PNG, WebP or BMP image",
    "too_many_pixels": "the image has more pixels than max_pixels",
    "undecodable": "the image has a known format, but is broken or truncated",
}


class RejectedObject(Exception):
    """Base class of errors that concern one object only: the step records the object as rejected and continues."""

    def __init__(self, reason: str, message: str) -> None:
        assert reason in REASONS, reason  # noqa: S101  # an unknown reason is a bug
        super().__init__(message)
        self.reason = reason
