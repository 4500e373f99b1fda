"""What the service `provision` of docker-compose.yaml does: fill the local AWS, and write what Airflow must know of it.

    python docker/provision.py --url http://127.0.0.1:5000 --config FOLDER

FOLDER gets `release.env` and `secrets.env` for docker/entrypoint.sh, and `passwords.json` with the password of the
variable ADMIN_PASSWORD. It may run again while Airflow runs: secrets that are there stay.
"""

import argparse
import base64
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from demo import pictures, stack
from infra import release


def fill(url: str, build_dir: Path) -> str:
    """Upload the release and rendered pictures, into a bucket that is made if need be; return the release's version.

    Raises:
        infra.release.PartMissing: the release has not been built.
    """
    s3 = stack.client("s3", url)
    if stack.BUCKET in {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}:
        version = release.upload(s3, stack.BUCKET, release.collect(build_dir))
    else:
        version = stack.provision(url, build_dir)
    with tempfile.TemporaryDirectory() as folder:
        pictures.write_dataset(Path(folder))
        stack.upload_images(s3, Path(folder))
    return version


def new_secrets() -> dict[str, str]:
    """What all of Airflow's processes must agree on and nobody else may know."""
    return {
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(16),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    }


def write_environment(file: Path, variables: Mapping[str, str]) -> None:
    """Write variables for a shell to read; their values need no quotes."""
    file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))


def main(argv: list[str] | None = None) -> int:
    """Provision; return the exit code."""
    parser = argparse.ArgumentParser(description="Fill the local AWS and configure Airflow for it.")
    parser.add_argument("--url", required=True, help="of the local AWS")
    parser.add_argument("--config", type=Path, required=True, help="folder for what Airflow must know")
    parser.add_argument("--build-dir", type=Path, default=stack.ROOT / "build", help="with wheels/ and model/")
    arguments = parser.parse_args(argv)
    try:
        version = fill(arguments.url, arguments.build_dir)
    except release.PartMissing as error:
        sys.stderr.write(f"failed: {error}\n")
        return 1
    os.umask(0o077)
    write_environment(arguments.config / "release.env", {"ORCHARD_RELEASE": version})
    if not (arguments.config / "secrets.env").exists():
        write_environment(arguments.config / "secrets.env", new_secrets())
    (arguments.config / "passwords.json").write_text(json.dumps({"admin": os.environ["ADMIN_PASSWORD"]}))
    sys.stdout.write(f"release {version} and pictures are in s3://{stack.BUCKET}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
