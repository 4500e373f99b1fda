import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.credentials import Credentials

from orchard_spark import objects
from tests.spark.http_server import Answer, s3_that_answers


def test_write_and_read_preserve_the_bytes_on_s3_and_on_disk(steps_bucket: str, tmp_path: Path) -> None:
    for uri in (f"s3://{steps_bucket}/out/a.bin", f"file://{tmp_path}/out/a.bin"):
        objects.write(uri, b"abc")
        assert objects.read(uri) == b"abc"


def test_an_unsupported_scheme_is_refused() -> None:
    with pytest.raises(objects.BadUri, match="'gs://bucket/x': use s3://"):
        objects.absolute("gs://bucket/x")


def test_a_relative_path_becomes_an_absolute_uri(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert objects.absolute("../images/") == f"file://{tmp_path}/images/"


def test_a_ranged_file_reads_like_any_other_file(tmp_path: Path) -> None:
    (tmp_path / "letters").write_bytes(b"abcdefghij")
    file = objects.RangedFile(f"file://{tmp_path}/letters")
    assert file.read(3) == b"abc"
    assert file.tell() == 3
    assert file.seek(-2, 2) == 8
    assert file.read() == b"ij"
    assert file.read(5) == b""
    assert file.seek(1) == 1
    assert file.read(100) == b"bcdefghij"


def test_a_written_table_is_read_through_a_ranged_file(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/numbers.parquet"
    pq.write_table(pa.table({"number": [0, 1, 2]}), tmp_path / "numbers.parquet")
    assert pq.ParquetFile(objects.RangedFile(uri)).read()["number"].to_pylist() == [0, 1, 2]


# Prints credentials that expire after two seconds. The token is the time when they do.
CREDENTIAL_PROCESS = """
import json, time
from datetime import UTC, datetime, timedelta
end = datetime.now(UTC) + timedelta(seconds=2)
print(json.dumps({"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "b", "SessionToken": str(end.timestamp()),
                  "Expiration": end.isoformat()}))
"""


def give_a_byte_before_expiry(headers: Mapping[str, str], tokens: set[str]) -> Answer:
    """Answer a GET as S3 does, which refuses a token that has expired. Collect the tokens."""
    token = headers["x-amz-security-token"]
    tokens.add(token)
    if float(token) < time.time():
        return 400, {}, b"<Error><Code>ExpiredToken</Code></Error>"
    return 200, {"ETag": '"e"', "Last-Modified": "Sun, 22 Nov 2026 02:00:00 GMT"}, b"x"


def test_credentials_that_expire_are_renewed_before_they_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, config, tokens = tmp_path / "credentials.py", tmp_path / "config", set[str]()
    program.write_text(CREDENTIAL_PROCESS)
    config.write_text(f"[default]\ncredential_process = {sys.executable} {program}\n")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    objects.store.cache_clear()
    with s3_that_answers(lambda _, headers: give_a_byte_before_expiry(headers, tokens)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            assert objects.read("s3://bucket/key") == b"x"
            time.sleep(0.05)
    objects.store.cache_clear()
    assert len(tokens) > 2


def test_credentials_that_do_not_expire_are_kept() -> None:
    given = objects.CurrentCredentials(Credentials("a", "b", "c"))()
    assert given == {"access_key_id": "a", "secret_access_key": "b", "token": "c", "expires_at": None}
