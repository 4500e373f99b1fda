"""Provision the local AWS, and write the configuration that Airflow needs to use it.

The service `provision` of docker-compose.yaml runs this. It writes three files into the folder --config: `release.env`
and `secrets.env` for docker/entrypoint.sh, and `passwords.json` with the password from the variable ADMIN_PASSWORD. It
can run again while Airflow is running: existing secrets are kept.
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

from infra import release
from sandbox import aws, pictures
from sandbox.folders import ROOT

EXAMPLE = """\
example:
  PYTHONPATH=. ADMIN_PASSWORD=admin python docker/provision.py --url http://127.0.0.1:5000 --config config
"""


def provision(url: str, build_dir: Path) -> str:
    """Create the bucket and the roles if needed, upload the release and rendered images, and return the version.

    Raises:
        infra.release.PartMissing: a part of the release has not been built.
    """
    s3 = aws.client("s3", url)
    if aws.BUCKET in {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}:
        version = release.upload(s3, aws.BUCKET, release.collect(build_dir))
    else:
        version = aws.provision(url, build_dir)
    with tempfile.TemporaryDirectory() as folder:
        pictures.write_dataset(Path(folder))
        aws.upload_images(s3, Path(folder))
    return version


def new_secrets() -> dict[str, str]:
    """Return new values for the secrets that all of Airflow's processes share."""
    return {
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(16),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    }


def write_environment(file: Path, variables: Mapping[str, str]) -> None:
    """Write variables to a file that a shell can read. The values must not need quotes."""
    file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))


def main(argv: list[str] | None = None) -> int:
    """Provision the local AWS, write the configuration, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python docker/provision.py",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", required=True, help="endpoint URL of the local AWS")
    parser.add_argument("--config", type=Path, required=True, help="folder for the configuration of Airflow")
    parser.add_argument(
        "--build-dir", type=Path, default=ROOT / "build", help="folder with wheels/ and model/ (default: build)"
    )
    arguments = parser.parse_args(argv)
    try:
        version = provision(arguments.url, arguments.build_dir)
    except release.PartMissing as error:
        sys.stderr.write(f"failed: {error}\n")
        return 1
    os.umask(0o077)
    write_environment(arguments.config / "release.env", {"ORCHARD_RELEASE": version})
    if not (arguments.config / "secrets.env").exists():
        write_environment(arguments.config / "secrets.env", new_secrets())
    (arguments.config / "passwords.json").write_text(json.dumps({"admin": os.environ["ADMIN_PASSWORD"]}))
    sys.stdout.write(f"release {version} and rendered images are in s3://{aws.BUCKET}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
