import hashlib
import io
import os
import platform
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyspark
import pytest

from infra import release
from local_aws.client import Answer, LocalAwsClient
from local_aws.emr.node import Node, make_node

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SCRIPT = Path(release.ROOT / "bootstrap/install.sh")
RUNBOOK = release.ROOT / "docs/runbook.md"
NOBODY = 65534

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def node(aws_url: str, tmp_path_factory: pytest.TempPathFactory) -> Node:
    """A node of the local EMR, in a folder whose path needs quotes."""
    return make_node(tmp_path_factory.mktemp("node") / "a b $c 'é'", aws_url, "eu-west-1", [])


@dataclass(frozen=True)
class Install:
    """Runs the script on a node. `before` is the start of its command, for example to run it as another user."""

    node: Node
    before: Sequence[str] = ()
    script: Path = SCRIPT
    variables: Mapping[str, str] = field(default_factory=dict)

    def command(self, *arguments: str) -> list[str]:
        return [*self.before, "bash", str(self.script), *(self.node.localise(argument) for argument in arguments)]

    def environment(self, **variables: str) -> dict[str, str]:
        merged = {**self.node.environment(), "AWS_MAX_ATTEMPTS": "2", **self.variables, **variables}
        return {name: value for name, value in merged.items() if value}

    def __call__(self, *arguments: str, **variables: str) -> Done:
        """Run it with these variables. An empty one is not set."""
        environment = self.environment(**variables)
        return subprocess.run(
            self.command(*arguments), env=environment, capture_output=True, text=True, check=False, timeout=300
        )


@pytest.fixture
def install(node: Node) -> Install:
    return Install(node)


@pytest.fixture(scope="module")
def quick(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """As `install`, with a Python that copies pip into each environment, because ensurepip takes seconds."""
    folder, python = tmp_path_factory.mktemp("quick"), node.root / "usr/bin/python3.11"
    subprocess.run([python, "-m", "venv", folder / "venv"], capture_output=True, check=True)
    installed = "lib/python3.11/site-packages"
    program = folder / "python3.11"
    program.write_text(
        f'#!/bin/sh\n{shlex.quote(str(python))} "$@" || exit\n'
        f'for venv; do :; done\ncp -R {shlex.quote(str(folder / "venv" / installed))}/. "$venv/{installed}"\n'
    )
    program.chmod(0o755)
    return Install(node, variables={"PATH": f"{folder}:{node.environment()['PATH']}"})


def quotes_of_the_runbook() -> list[str]:
    """Return the last lines of the script that the runbook lists, as regular expressions."""
    section = RUNBOOK.read_text().partition("## The bootstrap action fails")[2].partition("\n## ")[0]
    symptoms = re.findall(r"^\| ([^|]+) \|", section, flags=re.MULTILINE)
    quotes = [quote for symptom in symptoms for quote in re.findall(r"\*([^*]+)\*", symptom)]
    return [re.escape(quote).replace("…", ".+") for quote in quotes]


def last_line(done: Done, code: int = 1) -> str:
    """Return the last line of a run that failed, without the name of the script. The runbook must list it."""
    assert done.returncode == code, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("install.sh: ")
    cause = line.removeprefix("install.sh: ")
    assert any(re.match(rf"{quote}\. [A-Z]", cause) for quote in quotes_of_the_runbook()), cause
    assert line.count("install.sh: ") == done.stderr.count("install.sh: "), "only the last line is the script's own"
    return cause


def test_the_runbook_lists_every_last_line_of_the_script() -> None:
    script = SCRIPT.read_text()
    causes = re.findall(r'\bfail\s+"((?:[^"\\]|\\.)*)"', script)
    causes += re.findall(r'\bcause="([^"]*)"', script)
    causes += re.findall(r"install\.sh: (failed at line \$LINENO: \$BASH_COMMAND)", script)
    assert len(causes) >= 20
    shown = [re.sub(r"\$\w+|\$\{[^}]*\}|\$\([^)]*\)", "…", cause) for cause in causes]
    missing = [cause for cause in shown if not any(re.fullmatch(quote, cause) for quote in quotes_of_the_runbook())]
    assert missing == []


# Uses the libraries as the steps do: decode, infer, multiply, write and read Parquet.
USE = """
import io, pathlib, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from PIL import Image
import features, ingest, pca
from orchard_spark import images, mobilenet, moments, objects
for image_format in images.FORMATS:
    file = io.BytesIO()
    Image.new("RGB", (100, 100), "red").save(file, image_format)
    decoded, _ = images.decode(file.getvalue())
model = mobilenet.load(pathlib.Path(sys.argv[1]).read_bytes())
values = np.stack(list(model.features([images.to_model_input(decoded, model.size_px)] * 9)))
moments.Moments.of(values)
objects.write(f"file://{sys.argv[2]}/written", b"x")
pq.write_table(pa.table({"features": list(values)}), f"{sys.argv[2]}/table.parquet")
print(values.shape, pq.read_table(f"{sys.argv[2]}/table.parquet").num_rows, np.__file__.split("/lib/")[0])
"""


@pytest.fixture
def release_uri(s3: "S3Client", bucket: str) -> str:
    """A release on S3 without wheels."""
    requirements = (SCRIPT.parent / "requirements.txt").read_bytes()
    s3.put_object(Bucket=bucket, Key="releases/1/bootstrap/requirements.txt", Body=requirements)
    return f"s3://{bucket}/releases/1"


def test_the_steps_python_is_installed_from_the_wheels_of_the_release(
    s3: "S3Client", bucket: str, build_dir: Path, node: Node, install: Install
) -> None:
    version = release.upload(s3, bucket, release.collect(build_dir))
    done = install("--release", f"s3://{bucket}/releases/{version}/", "--prefix", "/opt/orchard")
    assert done.returncode == 0, done.stderr
    assert "venv is ready after" in done.stdout
    fitting = sum(
        file.stat().st_size
        for file in (build_dir / "wheels").glob("*.whl")
        if file.name.endswith(("-any.whl", f"_{platform.machine()}.whl"))
    )
    (downloaded_mib,) = re.findall(r"downloaded after \d+ s: (\d+)M", done.stdout)
    assert int(downloaded_mib) <= 1.05 * fitting / 1024**2, "the wheels for other architectures are not downloaded"
    python = node.root / "opt/orchard/venv/bin/python"
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout.lower()
    names = {line.split()[0] for line in listed.splitlines()[2:]}
    assert {"ai-edge-litert", "boto3", "numpy", "obstore", "pillow", "pyarrow"} <= names
    assert not {"tensorflow-cpu", "tensorflow", "pyspark", "apache-airflow"} & names

    # PySpark and Py4J come with Spark on a node.
    (model,) = (build_dir / "model").glob("*.tflite")
    zips = (Path(pyspark.__file__).parent / "python/lib").glob("*.zip")
    modules = {"PYTHONPATH": ":".join(map(str, [release.ROOT / "spark", *zips]))}
    command: list[str | Path] = [python, "-W", "error::ImportWarning", "-c", USE, str(model), str(node.root / "tmp")]
    used = subprocess.run(command, env=node.environment() | modules, capture_output=True, text=True, check=False)
    assert used.stdout == f"(9, 1280) 9 {node.root}/opt/orchard/venv\n", used.stderr
    size = sum(file.lstat().st_blocks * 512 for file in (node.root / "opt/orchard").rglob("*"))
    assert size <= 400 * 1024**2


MODULES = (
    *("ai_edge_litert/interpreter", "boto3/__init__", "numpy/__init__", "numpy/tests/__init__"),
    *("obstore/__init__", "PIL/Image", "pyarrow/parquet"),
)
SMALL, SIX = "small-1.0-py3-none-any.whl", "six-1.0-py3-none-any.whl"


def make_wheel(name: str, files: Mapping[str, str]) -> bytes:
    """Return a wheel: https://packaging.python.org/specifications/binary-distribution-format/."""
    package, version = name.split("-")[:2]
    info = f"{package}-{version}.dist-info"
    metadata = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in {**files, **metadata, f"{info}/RECORD": ""}.items():
            archive.writestr(path, text)
    return content.getvalue()


@dataclass(frozen=True)
class Small:
    """A release on S3 with small wheels, which contain all modules that the script imports."""

    s3: "S3Client"
    bucket: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/releases/1"

    def put(self, path: str, content: bytes) -> None:
        self.s3.put_object(Bucket=self.bucket, Key=f"releases/1/{path}", Body=content)

    def delete(self, path: str) -> None:
        self.s3.delete_object(Bucket=self.bucket, Key=f"releases/1/{path}")

    def upload(self, wheels: Mapping[str, bytes]) -> None:
        for name, content in wheels.items():
            self.put(f"wheels/{name}", content)
        # No requirement names this one.
        self.put(f"wheels/other-1.0-cp311-cp311-manylinux_2_17_{platform.machine()}.whl", b"1")
        hashes = {name.split("-")[0]: hashlib.sha256(content).hexdigest() for name, content in wheels.items()}
        lines = (f"{package}==1.0 --hash=sha256:{sha256}\n" for package, sha256 in hashes.items())
        self.put("bootstrap/requirements.txt", "".join(lines).encode())


@pytest.fixture
def small(s3: "S3Client", bucket: str) -> Small:
    made = Small(s3, bucket)
    modules = {f"{module}.py": "" for module in MODULES}
    made.upload({SMALL: make_wheel(SMALL, modules), SIX: make_wheel(SIX, {"six.py": ""})})
    return made


def packages(install: Install, prefix: str) -> Path:
    return Path(install.node.localise(prefix)) / "venv/lib/python3.11/site-packages"


def test_a_second_run_keeps_a_complete_environment(small: Small, quick: Install) -> None:
    options = ("--release", small.uri, "--prefix", "/opt/twice")
    first = quick(*options)
    assert first.returncode == 0, first.stderr
    assert not (packages(quick, "/opt/twice") / "numpy/tests").exists(), "the libraries' tests are deleted"
    small.delete(f"wheels/{SMALL}")  # a second installation would fail
    second = quick(*options)
    assert second.returncode == 0, second.stderr
    assert second.stdout == f"install.sh: {quick.node.root}/opt/twice/venv is ready: it was complete already\n"
    assert second.stderr == ""


@pytest.mark.slow
def test_an_environment_of_another_release_or_one_that_does_not_work_is_replaced(
    small: Small, install: Install
) -> None:
    options = ("--release", small.uri, "--prefix", "/opt/replaced")
    assert install(*options).returncode == 0
    small.upload({SMALL: make_wheel(SMALL, {f"{module}.py": "new = 1" for module in MODULES})})
    second = install(*options)
    assert second.returncode == 0, second.stderr
    assert (packages(install, "/opt/replaced") / "boto3/__init__.py").read_text() == "new = 1"
    assert not (packages(install, "/opt/replaced") / "six.py").exists()
    shutil.rmtree(packages(install, "/opt/replaced") / "boto3")
    assert "venv is ready after" in install(*options).stdout


@pytest.mark.parametrize(
    "reached",
    [
        "lib/python3.11/site-packages/pip",
        pytest.param("bin/python", marks=pytest.mark.slow),
        pytest.param("requirements.txt", marks=pytest.mark.slow),
    ],
)
def test_a_run_after_an_interrupted_one_installs_the_environment(small: Small, quick: Install, reached: str) -> None:
    options = ("--release", small.uri, "--prefix", f"/opt/after-{reached.replace('/', '-')}")
    venv = Path(quick.node.localise(options[-1])) / "venv"
    first = subprocess.Popen(
        quick.command(*options), env=quick.environment(), stdout=subprocess.DEVNULL, start_new_session=True
    )
    while not (venv / reached).exists() and first.poll() is None:
        time.sleep(0.005)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    if reached == "requirements.txt":  # the kernel may not have written all of it
        (venv / reached).write_text("small==1.0")
    (venv / "left").touch()
    second = quick(*options)
    assert second.returncode == 0, second.stderr
    assert "venv is ready after" in second.stdout
    assert not (venv / "left").exists()


def test_a_missing_wheel_is_named(small: Small, quick: Install) -> None:
    small.delete(f"wheels/{SIX}")
    temporary = quick.node.root / "tmp"
    before = {*temporary.iterdir()}
    done = quick("--release", small.uri, "--prefix", "/opt/missing")
    assert {*temporary.iterdir()} == before, "nothing is left"
    assert "No matching distribution found for six==1.0" in done.stderr
    assert last_line(done) == (
        f"{small.uri} has no wheel of six==1.0 for {platform.machine()}. Delete its manifest.json, and upload the "
        "release again with `make release`"
    )


def test_a_release_for_another_architecture_fails_with_what_to_do(
    small: Small, release_uri: str, quick: Install
) -> None:
    machine = platform.machine()
    (other,) = {*release.ARCHITECTURES} - {machine}
    small.delete(f"wheels/other-1.0-cp311-cp311-manylinux_2_17_{machine}.whl")
    for name in (f"ai_edge_litert-2.3.0-cp311-cp311-manylinux_2_27_{other}.whl", "boto3-1.43.117-py3-none-any.whl"):
        small.put(f"wheels/{name}", b"1")
    done = quick("--release", release_uri, "--prefix", "/opt/other")
    assert last_line(done) == (
        f"{release_uri} has no wheels for {machine}. Upload a new release with `make release`, and set "
        "ORCHARD_RELEASE to the version that it prints"
    )


@pytest.mark.parametrize(
    "content",
    [
        make_wheel(SIX, {"six.py": "1"}),
        pytest.param(b"", marks=pytest.mark.slow),
        pytest.param(b"not a zip file", marks=pytest.mark.slow),
    ],
    ids=["changed", "empty", "no zip file"],
)
def test_a_wheel_with_another_hash_is_refused_and_named(small: Small, quick: Install, content: bytes) -> None:
    small.put(f"wheels/{SIX}", content)
    done = quick("--release", small.uri, "--prefix", "/opt/changed")
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert last_line(done).startswith(
        f"{SIX} does not have the hash in {small.uri}/bootstrap/requirements.txt. The release is damaged: delete its "
    )
    assert not (packages(quick, "/opt/changed") / "numpy").exists()


@pytest.mark.slow
@pytest.mark.parametrize("requirements", [b"", b"\xff\x00", b"six=1.0", b"six==1.0", b"<html></html>"])
def test_requirements_that_pip_cannot_read_are_reported(small: Small, quick: Install, requirements: bytes) -> None:
    small.put("bootstrap/requirements.txt", requirements)
    done = quick("--release", small.uri, "--prefix", "/opt/unreadable")
    assert re.match(
        f"(pip cannot install {small.uri}/bootstrap/requirements.txt: .+|the environment in .* is not usable: .+)"
        r"\. Upload a new release",
        last_line(done),
    )


@pytest.mark.slow
def test_an_environment_without_a_module_is_not_usable(small: Small, quick: Install) -> None:
    small.upload({SMALL: make_wheel(SMALL, {f"{module}.py": "" for module in MODULES if "obstore" not in module})})
    done = quick("--release", small.uri, "--prefix", "/opt/unusable")
    venv = quick.node.localise("/opt/unusable/venv")
    assert last_line(done).startswith(
        f"the environment in {venv} is not usable: ModuleNotFoundError: No module named 'obstore'. Upload a new release"
    )
    assert "it was complete already" not in quick("--release", small.uri, "--prefix", "/opt/unusable").stdout


def with_tmpfs(folder: Path, size: str, *, readonly: bool = False) -> list[str]:
    """Return the start of a command that runs with a small tmpfs on a folder. Nobody else sees it.

    Skip the test where the user may not mount, not even in a namespace.
    """
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    probe = [*namespace, "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs to mount a tmpfs, as root or in a user namespace")
    mount = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'
    return [*namespace, "sh", "-c", mount, "sh", f"size={size}{',ro' if readonly else ''}", str(folder)]


@pytest.mark.parametrize(
    ("folder", "size"),
    [
        ("opt/full", "200k"),
        ("tmp", "64k"),
        pytest.param("opt/full", "4k", marks=pytest.mark.slow),
        pytest.param("opt/full", "8m", marks=pytest.mark.slow),
        pytest.param("opt/full", "60m", marks=pytest.mark.slow),
        pytest.param("tmp", "4k", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_reported_with_the_space_that_is_left(small: Small, node: Node, folder: str, size: str) -> None:
    modules = {f"{module}.py": "" for module in MODULES}
    # The zeros fill the disk when the wheel is installed, the others when it is downloaded.
    modules["numpy/data.py"] = "0" * (80 << 20) if folder == "opt/full" else os.urandom(99999).hex()
    small.upload({SMALL: make_wheel(SMALL, modules)})
    full = node.root / folder
    full.mkdir(exist_ok=True)
    done = Install(node, with_tmpfs(full, size))("--release", small.uri, "--prefix", "/opt/full")
    line = last_line(done)
    assert re.match(
        rf"the disk is full: (.* free on .*, )?[\d.]+[KM]? free on {re.escape(str(full))}(, .*)?\. The wheels and the "
        "environment need 500 MB. Use nodes with a larger root volume, or free space",
        line,
    ), line


@contextmanager
def programs_without(node: Node, *missing: str) -> Iterator[str]:
    """Yield a PATH on which some programs are not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for source in (node.root / "usr/bin", Path("/usr/local/bin"), Path("/usr/bin"), Path("/bin")):
            for program in source.iterdir():
                if program.name not in missing and not (folder / program.name).is_symlink():
                    (folder / program.name).symlink_to(program)
        yield name


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (
            "python3.11",
            "python3.11 is not installed. Set ORCHARD_RELEASE_LABEL to emr-7.1.0 or a later release of EMR 7",
        ),
        ("aws", "the AWS CLI is not installed. Use an image with the command aws, as those of EMR"),
    ],
    ids=["python3.11", "aws"],
)
def test_a_program_that_is_not_installed_is_named(small: Small, install: Install, program: str, expected: str) -> None:
    with programs_without(install.node, program) as path:
        done = install("--release", small.uri, "--prefix", "/opt/without", PATH=path)
    assert last_line(done) == expected
    assert not (install.node.root / "opt/without").exists()


def test_a_python_without_ensurepip_is_reported(small: Small, install: Install, tmp_path: Path) -> None:
    program = tmp_path / "python3.11"
    program.write_text("#!/bin/sh\necho 'No module named venv' >&2\nexit 1\n")
    program.chmod(0o755)
    done = install("--release", small.uri, "--prefix", "/opt/bare", PATH=f"{tmp_path}:{install.environment()['PATH']}")
    assert re.match(r"python3.11 cannot create .*/opt/bare/venv: No module named venv\. It needs", last_line(done))


def assert_unreachable(done: Done, uri: str) -> None:
    assert last_line(done) == (
        f"S3 cannot be reached to download {uri}/bootstrap/requirements.txt. Give the subnet a route to S3: an S3 "
        "gateway endpoint, or a NAT gateway. Check its security groups"
    )


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", pytest.param("http://s3.invalid", marks=pytest.mark.slow)])
def test_an_unreachable_s3_is_reported(small: Small, install: Install, endpoint: str) -> None:
    done = install("--release", small.uri, "--prefix", "/opt/unreachable", AWS_ENDPOINT_URL=endpoint)
    assert_unreachable(done, small.uri)


@contextmanager
def silent_server(*, accepts: bool) -> Iterator[str]:
    """Yield the URL of a server that answers no request. One that does not accept has a full queue of connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=0 if not accepts else 100) as server:
        address = server.getsockname()
        others = [socket.socket() for _ in range(0 if accepts else 3)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(address)
        yield f"http://127.0.0.1:{address[1]}"
        for other in others:
            other.close()


@pytest.mark.slow
def test_the_script_ends_if_the_network_drops_all_packets(small: Small, install: Install) -> None:
    started = time.monotonic()
    with silent_server(accepts=False) as url:
        done = install("--release", small.uri, "--prefix", "/opt/dropped", AWS_ENDPOINT_URL=url, AWS_MAX_ATTEMPTS="1")
    assert "Connect timeout on endpoint URL" in done.stderr
    assert_unreachable(done, small.uri)
    assert time.monotonic() - started < 60


@pytest.mark.slow
@pytest.mark.parametrize("accepts", [True, False])
def test_the_script_ends_within_minutes_without_an_answer_of_s3(small: Small, install: Install, accepts: bool) -> None:
    started = time.monotonic()
    with silent_server(accepts=accepts) as url:
        done = install("--release", small.uri, "--prefix", "/opt/silent", AWS_ENDPOINT_URL=url, AWS_MAX_ATTEMPTS="")
    assert_unreachable(done, small.uri)
    assert time.monotonic() - started < 240


@contextmanager
def s3_fails(aws_url: str, answer: Answer, calls: Sequence[int] | None) -> Iterator[None]:
    local = LocalAwsClient(aws_url)
    rule = local.fail("s3", answer, calls)
    try:
        yield
    finally:
        local.remove(rule)


@pytest.mark.parametrize(
    ("call", "path"),
    [
        (1, "bootstrap/requirements.txt"),
        pytest.param(2, "bootstrap/requirements.txt", marks=pytest.mark.slow),
        pytest.param(3, "wheels/", marks=pytest.mark.slow),
        pytest.param(4, "wheels/", marks=pytest.mark.slow),
    ],
    ids=["HeadObject", "GetObject", "ListObjectsV2", "GetObject of a wheel"],
)
def test_denied_access_is_reported(small: Small, install: Install, aws_url: str, call: int, path: str) -> None:
    with s3_fails(aws_url, "AccessDenied", [call]):
        done = install("--release", small.uri, "--prefix", "/opt/denied")
    assert last_line(done) == (
        f"S3 denies access to {small.uri}/{path}. Allow the nodes' role s3:ListBucket, s3:GetObject and, for an "
        "encrypted bucket, kms:Decrypt"
    )


@pytest.mark.slow
def test_another_error_of_s3_is_reported(small: Small, install: Install, aws_url: str) -> None:
    with s3_fails(aws_url, "InternalError", None):
        done = install("--release", small.uri, "--prefix", "/opt/error", AWS_MAX_ATTEMPTS="1")
    assert re.match(
        rf"{small.uri}/bootstrap/requirements.txt cannot be downloaded: .*\(500\).*\. Clear", last_line(done)
    )


def test_a_node_without_credentials_is_reported(small: Small, install: Install) -> None:
    done = install("--release", small.uri, "--prefix", "/opt/none", AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    assert "Unable to locate credentials" in done.stderr
    assert last_line(done) == (
        f"there are no valid AWS credentials to download {small.uri}/bootstrap/requirements.txt. Give the nodes a role "
        "that can read the release: ORCHARD_INSTANCE_PROFILE"
    )


@pytest.mark.parametrize("uri", ["s3://{bucket}/releases/none", "s3://no-such-bucket-{bucket}/releases/1"])
def test_a_release_that_does_not_exist_is_reported(bucket: str, install: Install, uri: str) -> None:
    uri = uri.format(bucket=bucket)
    done = install("--release", uri, "--prefix", "/opt/none")
    assert last_line(done) == (
        f"{uri}/bootstrap/requirements.txt does not exist. Upload the release with `make release`, and set "
        "ORCHARD_RELEASE to the version that it prints"
    )


@pytest.fixture
def user(aws_url: str) -> Iterator[Install]:
    """Runs the script as a user who is not root, and who owns a read-only folder /opt on the node."""
    with tempfile.TemporaryDirectory() as name:
        node = make_node(Path(name) / "node", aws_url, "eu-west-1", [])
        before: list[str] = []
        if os.geteuid() == 0:
            # The user must reach the node, and may read everything, because the Python of the tests may be in a folder
            # of root.
            Path(name).chmod(0o755)
            (node.root / "tmp").chmod(0o1777)
            os.chown(node.root / "opt", NOBODY, NOBODY)
            before = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
            before += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
            probe = [*before, "sh", "-c", 'exec "$1" -c ""', "sh", sys.executable]
            if shutil.which("setpriv") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
                pytest.skip("needs setpriv, with which root can run a program as another user")
        (node.root / "usr/bin/sudo").unlink()
        script = Path(shutil.copy(SCRIPT, node.root))
        (node.root / "opt").chmod(0o555)
        yield Install(node, before, script)
        (node.root / "opt").chmod(0o755)


@pytest.mark.slow
def test_a_user_without_root_installs_where_the_user_may_write(small: Small, user: Install) -> None:
    prefix = f"{user.node.root}/tmp/own"
    done = user("--release", small.uri, "--prefix", prefix)
    assert done.returncode == 0, done.stderr


def test_a_user_without_sudo_cannot_write_to_a_folder_of_root(small: Small, user: Install) -> None:
    with programs_without(user.node, "sudo") as path:
        done = user("--release", small.uri, "--prefix", "/opt/orchard", PATH=path)
    venv = f"{user.node.root}/opt/orchard/venv"
    assert re.fullmatch(
        rf"\w+ cannot write to {venv}: there is no sudo\. Use a --prefix that the user can write to, or a user who may "
        "use sudo",
        last_line(done),
    )


def write_sudo(install: Install, lines: str) -> None:
    program = install.node.root / "usr/bin/sudo"
    program.write_text(f"#!/bin/sh\n{lines}\n")
    program.chmod(0o755)


def test_a_user_who_may_not_use_sudo_is_named(small: Small, user: Install) -> None:
    write_sudo(user, "echo 'sudo: a password is required' >&2; exit 1")
    done = user("--release", small.uri, "--prefix", "/opt/orchard")
    assert re.match(r"\w+ cannot write to \S+/venv: sudo: a password is required\. Use a --prefix", last_line(done))


def test_a_user_with_sudo_gets_the_folder_and_others_can_read_it(small: Small, user: Install) -> None:
    # What root does, as far as the owner of /opt can do it.
    write_sudo(user, f'chmod u+w "{user.node.root}/opt" && exec "$@"')
    command = user.command("--release", small.uri, "--prefix", "/opt/orchard/deep")
    done = subprocess.run(
        command, env=user.environment(), umask=0o077, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for file in (user.node.root / "opt/orchard", *(user.node.root / "opt/orchard").rglob("*")):
        assert file.is_symlink() or file.stat().st_mode & 0o444 == 0o444
        assert not file.is_dir() or file.stat().st_mode & 0o111 == 0o111


def test_a_read_only_folder_is_reported(small: Small, node: Node) -> None:
    folder = node.root / "opt/readonly"
    folder.mkdir()
    done = Install(node, with_tmpfs(folder, "64k", readonly=True))("--release", small.uri, "--prefix", "/opt/readonly")
    assert re.match(r"\w+ cannot write to .*/opt/readonly/venv: .*Read-only file system\. Use a", last_line(done))


def test_a_file_in_place_of_the_folder_is_reported(small: Small, install: Install) -> None:
    (install.node.root / "opt/file").touch()
    done = install("--release", small.uri, "--prefix", "/opt/file")
    assert re.match(r"\w+ cannot write to .*/opt/file/venv: mkdir: .*: Not a directory\. Use", last_line(done))


def test_a_temporary_folder_that_does_not_exist_is_reported(small: Small, install: Install) -> None:
    done = install("--release", small.uri, "--prefix", "/opt/orchard", TMPDIR="/no/such/folder")
    assert re.match(
        r"cannot create a folder in /no/such/folder: No such file or directory\. Set TMPDIR", last_line(done)
    )


def test_a_temporary_folder_that_is_not_writable_is_reported(small: Small, user: Install) -> None:
    folder = f"{user.node.root}/opt"
    done = user("--release", small.uri, "--prefix", "/opt/orchard", TMPDIR=folder)
    assert re.match(rf"cannot create a folder in {folder}: Permission denied\. Set TMPDIR", last_line(done))


@pytest.mark.slow
def test_an_index_without_a_wheel_is_named_without_its_password(small: Small, quick: Install) -> None:
    index = "http://name:secret@127.0.0.1:9/simple"
    done = quick("--release", small.uri, "--prefix", "/opt/index", "--index-url", index, PIP_RETRIES="0")
    assert last_line(done) == (
        f"http://127.0.0.1:9/simple has no wheel of small==1.0 for {platform.machine()}, or cannot be reached. Check "
        "the URL and the route to it, or omit --index-url"
    )
    assert "secret" not in done.stderr


@pytest.mark.slow
def test_the_wheels_come_from_an_index(small: Small, install: Install, tmp_path: Path) -> None:
    for name in (SMALL, SIX):
        folder = tmp_path / name.split("-")[0]
        folder.mkdir()
        small.s3.download_file(small.bucket, f"releases/1/wheels/{name}", str(folder / name))
        (folder / "index.html").write_text(f'<a href="{name}">{name}</a>')
        small.delete(f"wheels/{name}")
    done = install("--release", small.uri, "--prefix", "/opt/from-index", "--index-url", tmp_path.as_uri())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["--release", "s3://bucket/releases/1"], "--release and --prefix are required"),
        ([], "--release and --prefix are required"),
        (["--prefx", "/opt/orchard"], "unknown option --prefx"),
        (["orchard"], "unknown option orchard"),
        (["--prefix", "/opt/orchard", "--release"], "option --release needs a value"),
        (["--release", "--prefix", "/opt/orchard"], "option --release needs a value"),
        (["--prefix", ""], "option --prefix needs a value"),
        (["--release", "1", "--prefix", "/x"], "--release is 1, not the URI of a release"),
        (["--release", "s3://bucket", "--prefix", "/x"], "--release is s3://bucket, not the URI of a release"),
    ],
)
def test_wrong_options_are_reported(install: Install, arguments: list[str], cause: str) -> None:
    assert last_line(install(*arguments), code=2) == f"{cause}. See install.sh --help"


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_shows_an_example(install: Install, option: str) -> None:
    done = install(option)
    assert done.returncode == 0
    assert "install.sh --release s3://BUCKET/releases/VERSION --prefix /opt/orchard" in done.stdout
