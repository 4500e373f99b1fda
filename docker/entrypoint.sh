#!/bin/sh
# entrypoint.sh FOLDER COMMAND...: run a command with the variables that docker/provision.py wrote into FOLDER.
set -eu
set -a
. "$1/secrets.env"
. "$1/release.env"
set +a
shift
exec "$@"
