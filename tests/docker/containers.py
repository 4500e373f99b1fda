"""A checkout of Orchard, and its containers, which `docker compose` starts from it."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox.processes import wait_until
from tests.docker.engine import docker, run, say

ROOT = Path(__file__).parents[2]
PROJECT = "orchard-test-docker"
PROJECT_LABEL = f"label=com.docker.compose.project={PROJECT}"
UP_SECONDS = 600
BUILD_SECONDS = 3600


def compose_command() -> list[str]:
    """Return `docker compose`, or `docker-compose` if Docker has no such plugin.

    Raises:
        FileNotFoundError: neither is installed.
    """
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and run([*command, "version"], check=False).returncode == 0:
            return command
    raise FileNotFoundError("neither `docker compose` nor docker-compose is installed")


def check_out(folder: Path) -> None:
    """Copy the files that git knows, and the parts of the release, as if umask 077 had been set.

    `make release-parts` then makes the parts of the release readable, as it does in a checkout.
    """
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT).stdout
    tracked = [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    parts = [file for part in ("wheels", "model") for file in (ROOT / "build" / part).rglob("*") if file.is_file()]
    for source in (*tracked, *parts):
        target = folder / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
    for name in (".venv", ".uv"):
        (folder / name).symlink_to((ROOT / name).resolve())
    run(["make", "release-parts"], cwd=folder)


@dataclass(frozen=True)
class Containers:
    """The containers of a checkout."""

    folder: Path
    variables: Mapping[str, str]
    options: tuple[str, ...] = ()
    command: list[str] = field(default_factory=compose_command)

    def compose(self, *arguments: str, timeout_seconds: float = 300, check: bool = True) -> str:
        """Run a command of Docker Compose and return its output.

        Raises:
            subprocess.CalledProcessError: the command failed, and `check` is set.
        """
        command = [*self.command, *self.options, "--project-name", PROJECT, *arguments]
        done = run(command, timeout_seconds=timeout_seconds, check=check, cwd=self.folder, variables=self.variables)
        return done.stdout + done.stderr

    def build(self) -> None:
        """Build the images."""
        say(f"building the images with `{' '.join(self.command)} build`")
        self.compose("build", timeout_seconds=BUILD_SECONDS)

    def up(self) -> None:
        """Start what is not running, and wait until all services are healthy.

        Raises:
            subprocess.CalledProcessError: a service did not start.
            TimeoutError: a service is not healthy in time.
        """
        say("starting the containers")
        if self.command == ["docker", "compose"]:
            self.compose("up", "--detach", "--wait", timeout_seconds=UP_SECONDS)
        else:  # version 1 cannot wait
            self.compose("up", "--detach", timeout_seconds=UP_SECONDS)
            wait_until(self.is_healthy, "healthy containers", timeout_seconds=UP_SECONDS, interval_seconds=1)

    def is_healthy(self) -> bool:
        """Return whether all containers are healthy, or have done their work."""
        states = [state["State"] for state in self.inspect().values()]
        return all(
            state["Health"]["Status"] == "healthy" if "Health" in state and state["Running"] else not state["ExitCode"]
            for state in states
        )

    def inspect(self) -> dict[str, dict[str, Any]]:
        """Return what the engine knows of each container, by service."""
        ids = docker("ps", "--all", "--quiet", "--filter", PROJECT_LABEL).split()
        found: list[dict[str, Any]] = json.loads(docker("inspect", *ids)) if ids else []
        return {container["Config"]["Labels"]["com.docker.compose.service"]: container for container in found}

    def down(self) -> None:
        """Stop the containers, and delete them with their networks and volumes."""
        self.compose("down", "--volumes", "--timeout", "60", check=False)


def leftovers() -> dict[str, list[str]]:
    """Return the containers, networks and volumes of the project, by kind."""
    listing = {"containers": ("ps", "--all"), "networks": ("network", "ls"), "volumes": ("volume", "ls")}
    return {kind: docker(*command, "--quiet", "--filter", PROJECT_LABEL).split() for kind, command in listing.items()}


@contextmanager
def containers(folder: Path, variables: Mapping[str, str], *options: str) -> Iterator[Containers]:
    """Provide the containers of a checkout, which are not started yet. In the end, everything of them is deleted."""
    found = Containers(folder, variables, options)
    try:
        yield found
    except subprocess.CalledProcessError:
        say(found.compose("ps", check=False) + found.compose("logs", "--tail", "30", check=False))
        raise
    finally:
        found.down()
