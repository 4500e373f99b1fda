#!/bin/sh
# entrypoint.sh FOLDER COMMAND...: run a command with the variables that docker/provision.py wrote into FOLDER.
set -eu
set -a
# shellcheck source=/dev/null
. "$1/secrets.env"
# shellcheck source=/dev/null
. "$1/release.env"
set +a
shift
exec "$@"
