import pytest

from orchard.cluster.emr_steps import exceptions_in

FRAMES = 'Traceback (most recent call last):\n  File "ingest.py", line 9, in run\n    raise error\n'
JAVA = "26/11/23 02:00:00 WARN Shutdown: java.io.IOException: Failed to delete\n\tat org.apache.spark.Main.main\n"


@pytest.mark.parametrize(
    "line",
    [
        "ingest.TooManyRejects: 30 of 300 objects were rejected",
        "ingest.NoImages: no images below s3://b/images/",
        "orchard_spark.moments.CannotFit: PCA needs at least 2 images",
        "orchard_spark.step.LostRows: 300 features, but 299 embeddings",
        "ValueError: no such fruit: pear",
        "KeyboardInterrupt",
    ],
)
def test_the_line_that_ends_a_traceback_names_the_exception_whatever_its_name(line: str) -> None:
    assert exceptions_in(f"{JAVA}{FRAMES}{line}\n{JAVA}") == [line]


def test_the_exception_of_a_task_follows_that_of_the_driver() -> None:
    text = f"{FRAMES}py4j.protocol.Py4JJavaError: An error occurred\n{JAVA}{FRAMES}features.UndecodableImage: a.jpg\n"
    assert exceptions_in(text)[-1] == "features.UndecodableImage: a.jpg"


def test_without_a_traceback_the_exceptions_of_java_count() -> None:
    text = 'Exception in thread "main" java.lang.IllegalStateException: no context\n\tat Main.main\n'
    assert exceptions_in(text) == ['Exception in thread "main" java.lang.IllegalStateException: no context']


def test_a_traceback_with_empty_lines_between_its_frames_is_read_to_its_end() -> None:
    text = 'Traceback (most recent call last):\n  File "a.py"\n\n    raise error\na.NotReady: wait\n'
    assert exceptions_in(text) == ["a.NotReady: wait"]


@pytest.mark.parametrize("text", ["", "all is well\n", "Traceback (most recent call last):\n  File x"])
def test_a_log_without_the_end_of_a_traceback_names_none(text: str) -> None:
    assert exceptions_in(text) == []
