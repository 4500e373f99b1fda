"""Write the configuration that Airflow's containers share, and provision the local AWS if Airflow uses it.

The service `provision` of docker-compose.yaml runs this. It writes two files into the folder --config: `secrets.env`
for docker/entrypoint.sh, and `passwords.json` with the password from the variable ADMIN_PASSWORD. If AWS_ENDPOINT_URL
is set, it waits for the local AWS, provisions it, and writes its release into `release.env`. It can run again while
Airflow is running: existing secrets are kept.
"""

import argparse
import base64
import json
import os
import secrets
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

from infra import release
from orchard.settings import BadSettings, Settings
from sandbox import aws, pictures
from sandbox.folders import ROOT
from sandbox.processes import wait_until

DEFAULT_PASSWORD = "admin"  # noqa: S105  # for the local AWS only
WAIT_SECONDS = 120
EXAMPLE = """\
example:
  export PYTHONPATH=.:plugins AWS_ENDPOINT_URL=http://127.0.0.1:5000 ADMIN_PASSWORD=admin
  python docker/provision.py --config config
"""


class DefaultPassword(ValueError):
    """The default password is used with a real account."""


def check_account_settings(variables: Mapping[str, str]) -> None:
    """Check the variables that are needed with a real account.

    Raises:
        BadSettings: Orchard's settings are incomplete or invalid.
        DefaultPassword: the password is the default.
    """
    Settings.from_env(variables)
    if variables["ADMIN_PASSWORD"] == DEFAULT_PASSWORD:
        raise DefaultPassword(
            f"ADMIN_PASSWORD is not set, or is {DEFAULT_PASSWORD!r}: set another, because this Airflow uses a real "
            "account"
        )


def wait_until_it_answers(url: str) -> None:
    """Wait until the local AWS answers.

    Raises:
        TimeoutError: it does not answer in time.
    """

    def answers() -> bool:
        with urllib.request.urlopen(f"{url}/moto-api/", timeout=5) as response:  # noqa: S310  # an HTTP URL
            return bool(response.status == HTTPStatus.OK)

    wait_until(answers, f"the local AWS at {url}", timeout_seconds=WAIT_SECONDS, retry_on=(OSError,))


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


def write_private(file: Path, content: str) -> None:
    """Write a file that other users of the system cannot read."""
    file.touch(mode=0o600)
    file.chmod(0o600)
    file.write_text(content)


def write_environment(file: Path, variables: Mapping[str, str]) -> None:
    """Write variables to a private file that a shell can read. The values must not need quotes."""
    write_private(file, "".join(f"{name}={value}\n" for name, value in variables.items()))


def main(argv: list[str] | None = None) -> int:
    """Write the configuration, provision the local AWS if there is one, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python docker/provision.py",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="folder for the configuration of Airflow")
    parser.add_argument(
        "--build-dir", type=Path, default=ROOT / "build", help="folder with wheels/ and model/ (default: build)"
    )
    arguments = parser.parse_args(argv)
    url, release_file = os.environ.get("AWS_ENDPOINT_URL"), arguments.config / "release.env"
    # Airflow must not start with the release of an earlier local AWS.
    release_file.unlink(missing_ok=True)
    try:
        if url:
            wait_until_it_answers(url)
            version = provision(url, arguments.build_dir)
            write_environment(release_file, {"ORCHARD_RELEASE": version})
            sys.stdout.write(f"release {version} and rendered images are in s3://{aws.BUCKET}\n")
        else:
            check_account_settings(os.environ)
    except (release.PartMissing, BadSettings, DefaultPassword, TimeoutError) as error:
        sys.stderr.write(f"failed: {error}\n")
        return 1
    if not (arguments.config / "secrets.env").exists():
        write_environment(arguments.config / "secrets.env", new_secrets())
    write_private(arguments.config / "passwords.json", json.dumps({"admin": os.environ["ADMIN_PASSWORD"]}))
    sys.stdout.write("Airflow's secrets and the password of its user admin are written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
