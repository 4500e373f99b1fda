#!/bin/sh
# entrypoint.sh FOLDER COMMAND...: run a command with the variables that docker/provision.py wrote into FOLDER.
set -eu
set -a
# shellcheck source=/dev/null
. "$1/secrets.env"
# With a real account, the release is a setting.
if [ -e "$1/release.env" ]; then
    # shellcheck source=/dev/null
    . "$1/release.env"
fi
set +a
shift
exec "$@"
