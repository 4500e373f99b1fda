"""A queue of runs that wait for one of a limited number of slots, kept as objects on S3.

    FOLDER/slots/1.json            the run that has the first slot
    FOLDER/tickets/TIME-HASH.json  a run that waits, since TIME

S3's conditional writes decide which run gets a slot: an object is created only if it does not exist, and replaced or
deleted only if it was not written since it was read. Two runs therefore never hold the same slot.
"""

import hashlib
import json
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

log = logging.getLogger(__name__)

# S3's answers when another writer was first: a condition does not hold, or two conditional writes meet.
LOST = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "404", "409", "412")
MISSING = ("NoSuchKey", "404")
# Returns whether a run has ended or is unknown. It is called anew each time: a run can be cleared at any moment.
HasEnded = Callable[["RunKey"], bool]


@dataclass(frozen=True)
class RunKey:
    """A run of Airflow."""

    dag_id: str
    run_id: str

    @property
    def digest(self) -> str:
        """The hash that stands for the run in keys, which a run_id may not fit."""
        return hashlib.sha256(f"{self.dag_id}/{self.run_id}".encode()).hexdigest()[:16]

    def __str__(self) -> str:
        """Return the run as messages name it."""
        return f"run {self.run_id!r} of {self.dag_id}"


@dataclass(frozen=True)
class Slot:
    """A slot and the run that has it."""

    number: int
    run: RunKey


@dataclass(frozen=True)
class RunQueue:
    """The queue below `folder`, which has no slash at its end, in a bucket."""

    s3: "S3Client"
    bucket: str
    folder: str

    def taken_slots(self, has_ended: HasEnded) -> list[Slot]:
        """Release the slots of runs that have ended, and return the other slots that are taken."""
        taken = []
        for key in self._keys("slots"):
            found = self._read(key)
            # `has_ended` is called after the etag was read: a run that is cleared later confirms its slot anew.
            while found is not None and has_ended(found[1]):
                if self._delete(key, found[0]):
                    log.info("s3://%s/%s: taken from %s, which has ended", self.bucket, key, found[1])
                    found = None
                else:
                    found = self._read(key)
            if found is not None:
                taken.append(Slot(int(key.rpartition("/")[2].removesuffix(".json")), found[1]))
        return taken

    def confirm(self, run: RunKey) -> bool:
        """Return whether a run has a slot, and confirm it with a new etag.

        Another run that has just found that this run has ended can then no longer delete its slot.
        """
        for key in self._keys("slots"):
            found = self._read(key)
            if found is not None and found[1] == run:
                return self._write(key, run, IfMatch=found[0])
        return False

    def take_slot(
        self, run: RunKey, taken: Sequence[Slot], limit: int, has_ended: HasEnded, now: datetime
    ) -> str | None:
        """Take a slot for a run, or confirm the one that it has. Return None, or why it must wait.

        The run that has waited for longest is next. `taken` is the result of `taken_slots`.
        """
        if self.confirm(run):
            self._delete_tickets(run)
            return None
        before = self._before(run, has_ended, now)
        free = max(0, limit - len(taken))
        if len(before) >= free:
            return f"next is {before[0] if before else 'this run'}"
        # Only as many as are free: a run with an old view of the queue must not take one more.
        numbers = {slot.number for slot in taken}
        for number in [number for number in range(1, limit + 1) if number not in numbers][:free]:
            if self._write(self._slot(number), run, IfNoneMatch="*"):
                self._delete_tickets(run)
                log.info("s3://%s/%s: taken by %s", self.bucket, self._slot(number), run)
                return None
        return "another run took the slot first; this run tries again at the next poll"

    def leave(self, run: RunKey) -> None:
        """Release the slots of a run and delete its tickets, if it has any."""
        for key in self._keys("slots"):
            found = self._read(key)
            if found is not None and found[1] == run and self._delete(key, found[0]):
                log.info("s3://%s/%s: released by %s", self.bucket, key, run)
        self._delete_tickets(run)

    def _before(self, run: RunKey, has_ended: HasEnded, now: datetime) -> list[RunKey]:
        """Return the runs that have waited longer than this run, which gets a ticket if it has none."""
        waiting: list[RunKey] = []
        for key in self._keys("tickets"):  # S3 sorts them
            if key.endswith(f"-{run.digest}.json"):
                return waiting
            found = self._read(key)
            if found is None:
                continue
            if has_ended(found[1]):
                self._delete(key, found[0])
                log.info("s3://%s/%s: deleted, because %s has ended", self.bucket, key, found[1])
            else:
                waiting.append(found[1])
        self._write(f"{self.folder}/tickets/{now.astimezone(UTC):%Y%m%dT%H%M%S.%f}-{run.digest}.json", run)
        # Another run may have got an earlier ticket since the tickets were listed.
        return self._before(run, has_ended, now)

    def _slot(self, number: int) -> str:
        return f"{self.folder}/slots/{number}.json"

    def _keys(self, kind: str) -> list[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{self.folder}/{kind}/")
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def _read(self, key: str) -> tuple[str, RunKey] | None:
        answer = self._get(key)
        if answer is None:
            return None
        content = json.loads(answer["Body"].read())
        return answer["ETag"], RunKey(content["dag_id"], content["run_id"])

    def _content(self, key: str) -> bytes | None:
        answer = self._get(key)
        return None if answer is None else answer["Body"].read()

    def _get(self, key: str) -> "GetObjectOutputTypeDef | None":
        try:
            return self.s3.get_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if error.response["Error"]["Code"] in MISSING:
                return None
            raise

    def _write(self, key: str, run: RunKey, **condition: Any) -> bool:
        """Write an object, and return whether the condition held."""
        # An etag is a hash of the content, so each write needs another content.
        content = {"dag_id": run.dag_id, "run_id": run.run_id, "write": uuid.uuid4().hex}
        body = json.dumps(content).encode()
        try:
            self.s3.put_object(Bucket=self.bucket, Key=key, Body=body, **condition)
        except ClientError as error:
            if error.response["Error"]["Code"] in LOST:
                # If the response to the request was lost, botocore has sent it again, and its own write was first.
                return self._content(key) == body
            raise
        return True

    def _delete(self, key: str, etag: str) -> bool:
        """Delete an object unless it was written again, and return whether it is deleted."""
        try:
            self.s3.delete_object(Bucket=self.bucket, Key=key, IfMatch=etag)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in MISSING:
                return True
            if code in LOST:
                return False
            raise
        return True

    def _delete_tickets(self, run: RunKey) -> None:
        for key in self._keys("tickets"):
            if key.endswith(f"-{run.digest}.json"):
                self.s3.delete_object(Bucket=self.bucket, Key=key)
