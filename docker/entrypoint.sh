#!/bin/sh
# entrypoint.sh FOLDER COMMAND...: run a command with what docker/provision.py wrote into FOLDER as its environment.
set -eu
set -a
. "$1/secrets.env"
. "$1/release.env"
set +a
shift
exec "$@"
