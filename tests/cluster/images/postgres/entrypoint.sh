#!/bin/bash
# Runs PostgreSQL in PGDATA, which is initialised when it is empty: POSTGRES_USER (postgres), POSTGRES_DB (the user's name)
# and POSTGRES_PASSWORD_FILE or POSTGRES_PASSWORD are those of the official image.
set -euo pipefail
user=${POSTGRES_USER:-postgres}
database=${POSTGRES_DB:-$user}

initialise() {
  local password
  password=$(if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then cat "$POSTGRES_PASSWORD_FILE"; else echo "${POSTGRES_PASSWORD:-}"; fi)
  [ -n "$password" ] || { echo "POSTGRES_PASSWORD_FILE or POSTGRES_PASSWORD must be set." >&2; exit 1; }
  # Beside PGDATA first: an initialisation that is cut off leaves nothing that looks like a database.
  local work=$PGDATA.new
  rm -rf "$work"
  mkdir --parents --mode=700 "$work"
  initdb --pgdata="$work" --username="$user" --pwfile=<(echo "$password") --auth-local=trust --auth-host=scram-sha-256
  # initdb lets in its own machine alone.
  echo "host all all all scram-sha-256" >> "$work/pg_hba.conf"
  if [ "$database" != postgres ]; then
    pg_ctl --pgdata="$work" --wait start --options="-c listen_addresses='' -c unix_socket_directories=/tmp"
    createdb --username="$user" --host=/tmp --maintenance-db=postgres "$database"
    pg_ctl --pgdata="$work" --wait --mode=fast stop
  fi
  sync
  mv --no-target-directory "$work" "$PGDATA"
}

[ -s "$PGDATA/PG_VERSION" ] || initialise
exec postgres -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql
