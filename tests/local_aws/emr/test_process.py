from pathlib import Path

import pytest

from local_aws.emr.process import LOG_CHARACTERS_IN_FAILURE, LOG_LINES_IN_FAILURE, last_lines

TRACEBACK = 'Traceback (most recent call last):\n  File "a.py", line 1\nValueError: no'
JAVA_EXCEPTION = 'Exception in thread "main" java.lang.E: no\n\tat a.B'


@pytest.mark.parametrize(
    ("stdout", "stderr", "message"),
    [
        ("", "", ""),
        ("out\n", "one\ntwo\n", "out\none\ntwo"),
        ("", "\n".join(f"line {number}" for number in range(30)), "\n".join(f"line {n}" for n in range(10, 30))),
        ("", f"noise\n{TRACEBACK}\n", TRACEBACK),
        ("", f"{TRACEBACK}\n26/01/31 02:03:04 INFO SparkContext: stopping\n", TRACEBACK),
        (f"{TRACEBACK}\n", "26/01/31 02:03:04 INFO ShutdownHookManager: bye\n", TRACEBACK),
        ("", f"{TRACEBACK} the first\n\n{TRACEBACK} the last\n", f"{TRACEBACK} the last"),
        ("", f"noise\n{JAVA_EXCEPTION}\n", JAVA_EXCEPTION),
        (f"{TRACEBACK}\n", f"{JAVA_EXCEPTION}\n", TRACEBACK),
    ],
)
def test_the_last_lines_are_the_last_traceback_or_exception_or_else_the_end_of_the_output(
    tmp_path: Path, stdout: str, stderr: str, message: str
) -> None:
    (tmp_path / "stdout").write_text(stdout)
    (tmp_path / "stderr").write_text(stderr)
    assert last_lines(tmp_path) == message


def test_a_long_traceback_is_cut_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "stdout").write_text("")
    frames = "".join(f"  frame {number}\n" for number in range(40))
    (tmp_path / "stderr").write_text(f"Traceback (most recent call last):\n{frames}ValueError: no\n")
    lines = last_lines(tmp_path).splitlines()
    assert (len(lines), lines[0], lines[-1]) == (LOG_LINES_IN_FAILURE, "  frame 21", "ValueError: no")


def test_a_long_java_exception_keeps_its_message_and_causes_but_not_its_frames(tmp_path: Path) -> None:
    frames = "".join(f"\tat org.apache.hadoop.fs.s3a.S3AFileSystem.frame{number}(File.java)\n" for number in range(40))
    message = 'Exception in thread "main" java.io.FileNotFoundException: No such file or directory: s3://bucket/a.py'
    (tmp_path / "stdout").write_text("")
    (tmp_path / "stderr").write_text(f"{message}\n{frames}Caused by: java.lang.E: no\n{frames}")
    assert last_lines(tmp_path).splitlines() == [message, "Caused by: java.lang.E: no"]


def test_the_start_of_a_long_exception_message_is_kept(tmp_path: Path) -> None:
    plan = "".join(f"+- Project {number} {'x' * 100}\n" for number in range(40))
    (tmp_path / "stderr").write_text("")
    (tmp_path / "stdout").write_text(f"{TRACEBACK} column\n{plan}")
    assert f"ValueError: no column\n+- Project 0 {'x' * 100}\n+- Project 1 {'x' * 100}\n" in last_lines(tmp_path)
    (tmp_path / "stdout").write_text(f"{TRACEBACK} {'x' * 5000}")
    assert last_lines(tmp_path) == f"ValueError: no {'x' * 5000}"[:LOG_CHARACTERS_IN_FAILURE]


def test_only_whole_lines_are_kept_of_long_output(tmp_path: Path) -> None:
    (tmp_path / "stdout").write_text("".join(f"{number} {'x' * 400}\n" for number in range(9)))
    (tmp_path / "stderr").write_text("")
    assert [line[:2] for line in last_lines(tmp_path).splitlines()] == ["6 ", "7 ", "8 "]


def test_output_that_is_not_utf_8_is_decoded_with_replacements(tmp_path: Path) -> None:
    (tmp_path / "stdout").write_bytes(b"")
    (tmp_path / "stderr").write_bytes(b"caf\xe9")
    assert last_lines(tmp_path) == "caf\ufffd"
