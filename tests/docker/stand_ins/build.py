"""The base images: the official ones if a registry answers, else stand-ins that are built from Debian's packages."""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.docker.engine import docker, run, say

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]
DEBIAN = "bookworm"
PULL_SECONDS = 300
# Settings of this machine for pip and uv.
MACHINE_FILES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")
MACHINE_VARIABLES = re.compile(r"(PIP|UV)_\w+|SSL_CERT_FILE|REQUESTS_CA_BUNDLE")
# Documentation and lists that the official images do not contain either.
LEFT_OUT = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists")


@dataclass(frozen=True, kw_only=True)
class BaseImages:
    """The names of the two base images, and where they are from."""

    python: str
    postgres: str
    origin: str


def official_names() -> tuple[str, str]:
    """Return the names of the base images in docker-compose.yaml."""
    text = (ROOT / "docker-compose.yaml").read_text()
    python, postgres = (
        re.findall(rf"\$\{{{name}:-([^}}]+)\}}", text)[0] for name in ("PYTHON_IMAGE", "POSTGRES_IMAGE")
    )
    return python, postgres


def is_available(image: str) -> bool:
    """Return whether the engine has an image, or can pull it."""
    if docker("images", "--quiet", image):
        return True
    try:
        return run(["docker", "pull", "--quiet", image], timeout_seconds=PULL_SECONDS, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def base_images() -> BaseImages:
    """Return the base images, and build stand-ins if the official ones are unavailable.

    Raises:
        RuntimeError: stand-ins are needed, and debootstrap is not installed.
        subprocess.CalledProcessError: a stand-in cannot be built.
    """
    python, postgres = official_names()
    if is_available(python) and is_available(postgres):
        return BaseImages(python=python, postgres=postgres, origin="official images")
    images = {name: f"orchard-test/{name}:{DEBIAN}" for name in ("debian", "python", "postgres")}
    if not docker("images", "--quiet", images["debian"]):
        say("no registry answers: building stand-ins from Debian's packages")
        import_debian(images["debian"])
    for name in ("python", "postgres"):
        if not docker("images", "--quiet", images[name]):
            build_stand_in(name, images[name], images["debian"])
    return BaseImages(python=images["python"], postgres=images["postgres"], origin="stand-ins from Debian's packages")


def import_debian(image: str) -> None:
    """Make a minimal Debian an image of the engine."""
    if shutil.which("debootstrap") is None:
        raise RuntimeError("no registry answers, and debootstrap is not installed (Debian: debootstrap)")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        run(["debootstrap", "--variant=minbase", DEBIAN, str(root)])
        for name in LEFT_OUT:
            shutil.rmtree(root / name)
            (root / name).mkdir()
        archive = Path(folder) / "debian.tar"
        run(["tar", "--directory", str(root), "--create", "--file", str(archive), "."])
        docker("import", str(archive), image)


def build_stand_in(name: str, image: str, base: str) -> None:
    """Build a stand-in, with the settings of this machine for pip and uv."""
    say(f"building {image}")
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        shutil.copy(FOLDER / "postgres.sh", context)
        for file in filter(os.path.exists, MACHINE_FILES):
            target = context / "machine" / file.removeprefix("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
        variables = {key: value for key, value in os.environ.items() if MACHINE_VARIABLES.fullmatch(key)}
        lines = [f'ENV {key}="{value}"\n' for key, value in sorted(variables.items())] if name == "python" else []
        dockerfile = context / "Dockerfile"
        dockerfile.write_text((FOLDER / f"{name}.Dockerfile").read_text() + "".join(lines))
        docker("build", "--quiet", "--build-arg", f"BASE={base}", "--tag", image, str(context))
