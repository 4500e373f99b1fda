import base64
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra import release
from local_aws.client import LocalAwsClient

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def keys(s3: "S3Client", bucket: str) -> set[str]:
    return {item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]}


def test_a_release_contains_code_wheels_bootstrap_script_and_model(parts: Path) -> None:
    assert set(release.collect(parts)) == {
        "bootstrap/install.sh",
        "bootstrap/requirements.txt",
        "model/mobilenet.tflite",
        "spark/features.py",
        "spark/ingest.py",
        "spark/orchard_spark.zip",
        "spark/pca.py",
        "wheels/numpy.whl",
    }


def test_the_zip_file_contains_the_package_that_the_steps_import(parts: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(release.collect(parts)["spark/orchard_spark.zip"])) as archive:
        names = set(archive.namelist())
    package = release.ROOT / "spark/orchard_spark"
    assert names == {f"orchard_spark/{file.name}" for file in package.glob("*.py")}


def copy_sources(target: Path, *, umask: int = 0o022, time: int = 0, backwards: bool = False) -> Path:
    """Copy what a release is made from to another folder, in another order, with other times and permissions."""
    sources = [file for folder in ("bootstrap", "spark") for file in (release.ROOT / folder).rglob("*")]
    files = sorted((file for file in sources if file.suffix in (".py", ".sh", ".txt")), reverse=backwards)
    before = os.umask(umask)
    try:
        for file in files:
            copy = target / file.relative_to(release.ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
            os.utime(copy, (time, time))
    finally:
        os.umask(before)
    return target


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, check=True)


def commit(folder: Path) -> None:
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "test")


def test_two_copies_of_the_sources_have_one_version(parts: Path, tmp_path: Path) -> None:
    first = copy_sources(tmp_path / "first", umask=0o077)
    second = copy_sources(tmp_path / "a b/é", umask=0o002, time=2_000_000_000, backwards=True)
    (second / "spark/orchard_spark/__pycache__").mkdir()
    (second / "spark/orchard_spark/__pycache__/images.cpython-311.pyc").write_bytes(b"1")
    one, two = (release.collect(parts, root) for root in (first, second))
    assert {path for path in one if one[path] != two[path]} == set()
    assert release.manifest(one) == release.manifest(two)


@pytest.mark.parametrize("name", ["spark/notes.py", "spark/orchard_spark/notes.py", "spark/orchard_spark/x/y.py"])
def test_a_file_that_git_does_not_track_is_not_in_the_release(
    parts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    root = copy_sources(tmp_path / "checkout")
    commit(root)
    clean = release.manifest(release.collect(parts, root))
    assert caplog.text == ""
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text("left = 1")
    assert release.manifest(release.collect(parts, root)) == clean
    assert f"git does not track {name}: not in the release. Run `git add`, or delete them" in caplog.text
    git(root, "add", name)
    assert release.manifest(release.collect(parts, root))["version"] != clean["version"]


def test_files_that_differ_from_the_commit_are_named(tmp_path: Path) -> None:
    root = copy_sources(tmp_path / "checkout")
    assert release.changed_sources(root) == [], "there is no commit to compare with"
    commit(root)
    assert release.changed_sources(root) == []
    (root / "spark/pca.py").write_text("1")
    (root / "bootstrap/install.sh").unlink()
    (root / "README.md").write_text("1")
    assert release.changed_sources(root) == ["bootstrap/install.sh", "spark/pca.py"]


def test_a_checkout_that_git_refuses_to_read_is_reported(
    parts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = copy_sources(tmp_path / "checkout")
    (root / ".git").write_text("damaged")
    assert "spark/pca.py" in release.collect(parts, root)
    assert "git cannot read the checkout: fatal: " in caplog.text


def test_without_git_all_files_are_in_the_release(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = copy_sources(tmp_path / "copy")
    commit(root)
    (root / "spark/notes.py").write_text("left = 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "spark/notes.py" in release.collect(parts, root)


def test_the_zip_file_does_not_depend_on_zlib_or_on_the_system(parts: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(release.collect(parts)["spark/orchard_spark.zip"])) as archive:
        for info in archive.infolist():
            found = (info.compress_type, info.date_time, info.create_system, info.external_attr, info.extra)
            assert found == (zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0), 3, 0o600 << 16, b"")


@pytest.mark.slow
def test_two_builds_of_the_model_are_equal(model_file: Path, tmp_path: Path) -> None:
    # What differs between two machines: the folder, the language, the time zone, the order of sets, the permissions,
    # the number of threads, and the instructions of the processor that TensorFlow uses.
    shared = {**os.environ, "PYTHONPATH": str(release.ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    one = {"PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo", "LC_ALL": "C", "TF_ENABLE_ONEDNN_OPTS": "0"}
    two = {"PYTHONHASHSEED": "2", "TZ": "UTC", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    built = []
    for name, umask, variables in (("one", 0o077, one), ("a b/é", 0o002, two)):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        command = [sys.executable, "-m", "model.export", "--output-dir", "model"]
        subprocess.run(command, cwd=folder, env=shared | variables, umask=umask, capture_output=True, check=True)
        (file,) = (folder / "model").iterdir()
        built.append((file.name, file.read_bytes()))
    assert built[0] == built[1] == (model_file.name, model_file.read_bytes())


@pytest.mark.slow
def test_a_second_download_of_the_wheels_gives_the_same_files(build_dir: Path, tmp_path: Path) -> None:
    # `make` in a copy of the project without build/, with the packages of this one.
    for name in ("Makefile", "pyproject.toml", "uv.lock", "bootstrap"):
        (shutil.copytree if (release.ROOT / name).is_dir() else shutil.copy)(release.ROOT / name, tmp_path / name)
    for name in (".venv", ".uv"):
        (tmp_path / name).symlink_to(release.ROOT / name)
    wheels = next((build_dir / "wheels").glob(".complete-*")).name
    command = ["make", "--assume-old=.venv/.synced", f"build/wheels/{wheels}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    one, two = (
        {file.name: file.read_bytes() for file in folder.glob("wheels/*.whl")}
        for folder in (build_dir, tmp_path / "build")
    )
    assert one.keys() == two.keys()
    assert all(one[name] == two[name] for name in one)


def test_the_version_changes_only_if_the_content_changes(parts: Path) -> None:
    before = release.manifest(release.collect(parts))["version"]
    assert release.manifest(release.collect(parts))["version"] == before
    (parts / "wheels/numpy.whl").write_bytes(b"another")
    assert release.manifest(release.collect(parts))["version"] != before


def test_a_release_is_uploaded_once_with_its_manifest(s3: "S3Client", bucket: str, parts: Path) -> None:
    contents = release.collect(parts)
    version = release.upload(s3, bucket, contents)
    assert keys(s3, bucket) == {f"releases/{version}/{path}" for path in [*contents, "manifest.json"]}
    manifest = json.loads(s3.get_object(Bucket=bucket, Key=f"releases/{version}/manifest.json")["Body"].read())
    assert manifest["model"] == "model/mobilenet.tflite"
    assert manifest["files"]["wheels/numpy.whl"]["size"] == 16

    s3.delete_object(Bucket=bucket, Key=f"releases/{version}/wheels/numpy.whl")
    assert release.upload(s3, bucket, contents) == version
    assert f"releases/{version}/wheels/numpy.whl" not in keys(s3, bucket), "a complete release never changes"


def test_s3_stores_the_checksum_of_every_file(s3: "S3Client", bucket: str, parts: Path) -> None:
    contents = release.collect(parts)
    version = release.upload(s3, bucket, contents)
    for path, file in release.manifest(contents)["files"].items():
        head = s3.head_object(Bucket=bucket, Key=f"releases/{version}/{path}", ChecksumMode="ENABLED")
        assert base64.b64decode(head["ChecksumSHA256"]).hex() == file["sha256"]


def test_the_next_upload_completes_an_interrupted_one(s3: "S3Client", bucket: str, parts: Path) -> None:
    contents = release.collect(parts)
    version = release.manifest(contents)["version"]
    s3.put_object(Bucket=bucket, Key=f"releases/{version}/wheels/numpy.whl", Body=b"half")
    release.upload(s3, bucket, contents)
    assert (
        s3.get_object(Bucket=bucket, Key=f"releases/{version}/wheels/numpy.whl")["Body"].read() == b"wheels/numpy.whl"
    )


@pytest.mark.parametrize("missing", ["wheels/numpy.whl", "model/mobilenet.tflite"])
def test_the_error_about_a_missing_part_says_how_to_build_it(parts: Path, missing: str) -> None:
    (parts / missing).unlink()
    with pytest.raises(release.PartMissing, match="build it with `make release-parts`"):
        release.collect(parts)


@pytest.mark.parametrize(("present", "missing"), [("x86_64", "aarch64"), ("aarch64", "x86_64")])
def test_a_release_without_the_wheels_of_an_architecture_is_not_uploaded(
    parts: Path, present: str, missing: str
) -> None:
    wheel = parts / f"wheels/pyarrow-26.0.1-cp311-cp311-manylinux_2_28_{present}.whl"
    wheel.write_bytes(b"1")
    with pytest.raises(release.PartMissing, match=f"no wheel of pyarrow for {missing} in .*make release-parts"):
        release.collect(parts)
    wheel.with_name(wheel.name.replace(present, missing)).write_bytes(b"2")
    assert sorted(path for path in release.collect(parts) if "pyarrow" in path) == [
        "wheels/pyarrow-26.0.1-cp311-cp311-manylinux_2_28_aarch64.whl",
        "wheels/pyarrow-26.0.1-cp311-cp311-manylinux_2_28_x86_64.whl",
    ]


def test_a_wheel_of_pure_python_is_in_the_release_once(build_dir: Path) -> None:
    wheels = [path for path in release.collect(build_dir) if path.startswith("wheels/")]
    per_package = Counter(path.partition("-")[0] for path in wheels)
    architectures = len(release.ARCHITECTURES)
    for path in wheels:
        assert per_package[path.partition("-")[0]] == (1 if path.endswith("-any.whl") else architectures)


def test_a_release_cannot_contain_two_models(parts: Path) -> None:
    (parts / "model/other.tflite").write_bytes(b"2")
    with pytest.raises(release.PartMissing, match=r"no single model \(2 found\)"):
        release.collect(parts)


def test_the_wheels_of_the_release_are_those_of_the_requirements(build_dir: Path) -> None:
    release.check_wheels(release.collect(build_dir))


def without(wheel: str) -> Callable[[dict[str, bytes]], None]:
    def change(contents: dict[str, bytes]) -> None:
        for path in [path for path in contents if path.startswith(f"wheels/{wheel}-")]:
            del contents[path]

    return change


def truncated(contents: dict[str, bytes]) -> None:
    contents["wheels/six-1.17.0-py2.py3-none-any.whl"] = b"1"


def with_another(contents: dict[str, bytes]) -> None:
    contents["wheels/more-1.0-py3-none-any.whl"] = b"1"


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        (without("six"), ["no wheel of six==1.17.0"]),
        (without("pyarrow"), ["no wheel of pyarrow=="]),
        (truncated, ["no wheel of six==1.17.0", "six-1.17.0-py2.py3-none-any.whl has none of the hashes"]),
        (with_another, ["more-1.0-py3-none-any.whl has none of the hashes"]),
    ],
)
def test_a_release_that_nodes_could_not_install_is_not_uploaded(
    build_dir: Path, change: Callable[[dict[str, bytes]], None], faults: Sequence[str]
) -> None:
    contents = release.collect(build_dir)
    change(contents)
    with pytest.raises(release.WrongWheels, match="Delete build/wheels, and build them with") as error:
        release.check_wheels(contents)
    assert all(fault in str(error.value) for fault in faults)


@pytest.fixture
def released(parts: Path, monkeypatch: pytest.MonkeyPatch, aws_url: str) -> Path:
    """The parts of a release, and requirements of which they are the wheels; `main` uses the local AWS."""
    root = copy_sources(parts / "project")
    sha256 = release.manifest(release.collect(parts, root))["files"]["wheels/numpy.whl"]["sha256"]
    (root / "bootstrap/requirements.txt").write_text(f"numpy==1.0 \\\n    --hash=sha256:{sha256}\n")
    monkeypatch.setattr(release.collect, "__defaults__", (root,))
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_url)
    return parts


def test_the_command_prints_lines_of_an_env_file(
    released: Path, s3: "S3Client", bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--bucket", bucket, "--build-dir", str(released)]
    assert release.main(arguments) == 0
    version = release.manifest(release.collect(released))["version"]
    lines = f"ORCHARD_BUCKET={bucket}\nORCHARD_RELEASE={version}\n"
    assert capsys.readouterr().out == lines
    assert s3.head_object(Bucket=bucket, Key=f"releases/{version}/manifest.json")
    assert release.main(arguments) == 0
    assert capsys.readouterr().out == lines, "also if the release exists"
    shell = ["sh", "-c", 'set -a; . /dev/stdin; exec env -i A="$ORCHARD_BUCKET" B="$ORCHARD_RELEASE" env']
    done = subprocess.run(shell, input=lines, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"A={bucket}", f"B={version}"]


@pytest.mark.parametrize(
    ("bucket_name", "message"),
    [
        ("no-such-bucket", "bucket 'no-such-bucket' does not exist. Create it, or correct the name"),
        ("no such bucket", "bucket 'no such bucket' is not a name that S3 allows. Correct the name"),
    ],
)
def test_the_command_names_the_cause_of_a_failure(
    released: Path, bucket_name: str, message: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release.main(["--bucket", bucket_name, "--build-dir", str(released)]) == 1
    assert f"failed: {message}" in caplog.text
    assert capsys.readouterr().out == ""


def test_the_command_reports_denied_access_and_missing_credentials(
    released: Path, bucket: str, aws_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--bucket", bucket, "--build-dir", str(released)]
    local = LocalAwsClient(aws_url)
    rule = local.fail("s3", "AccessDenied")
    try:
        assert release.main(arguments) == 1
    finally:
        local.remove(rule)
    assert f"failed: AWS denies access to bucket '{bucket}'. Use credentials that allow s3:ListBucket" in caplog.text
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    assert release.main(arguments) == 1
    assert "failed: there are no AWS credentials" in caplog.text


def test_the_command_reports_a_missing_part_and_wrong_wheels(
    released: Path, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["--bucket", bucket, "--build-dir", str(released)]
    (released / "wheels/numpy.whl").write_bytes(b"1")
    assert release.main(arguments) == 1
    assert "failed: the wheels are not those of bootstrap/requirements.txt: no wheel of numpy==1.0; numpy.whl has" in (
        caplog.text
    )
    (released / "wheels/numpy.whl").unlink()
    assert release.main(arguments) == 1
    assert "build it with `make release-parts`" in caplog.text


def test_the_command_warns_of_changes_that_are_not_committed(
    released: Path, bucket: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = released / "project"
    commit(root)
    (root / "spark/pca.py").write_text("1")
    monkeypatch.setattr(release.changed_sources, "__defaults__", (root,))
    with caplog.at_level(logging.WARNING):
        assert release.main(["--bucket", bucket, "--build-dir", str(released)]) == 0
    assert "the release is not that of the commit, because files have changed: spark/pca.py" in caplog.text
