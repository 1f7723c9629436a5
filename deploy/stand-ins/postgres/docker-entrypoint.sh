#!/usr/bin/env bash
# Supports what the official image documents and we use: POSTGRES_PASSWORD, POSTGRES_USER, POSTGRES_DB and
# POSTGRES_INITDB_ARGS, each also with _FILE; POSTGRES_HOST_AUTH_METHOD; PGDATA; /docker-entrypoint-initdb.d; flags as arguments.
set -euo pipefail

from_file() { # NAME default
    local name=$1 file=$1_FILE
    if [[ -n ${!name:-} && -n ${!file:-} ]]; then
        echo "both $name and $file are set" >&2
        exit 1
    fi
    if [[ -n ${!file:-} ]]; then
        printf -v "$name" '%s' "$(< "${!file}")"
    elif [[ -z ${!name:-} ]]; then
        printf -v "$name" '%s' "$2"
    fi
    unset "$file"
}

initialise() {
    from_file POSTGRES_USER postgres
    from_file POSTGRES_PASSWORD ''
    from_file POSTGRES_DB "$POSTGRES_USER"
    from_file POSTGRES_INITDB_ARGS ''
    local method=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
    if [[ -z $POSTGRES_PASSWORD && $method != trust ]]; then
        echo 'the database is empty and no superuser password is given: set POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE' >&2
        exit 1
    fi
    # The arguments are split into words, like in the official image.
    # shellcheck disable=SC2086
    initdb --username="$POSTGRES_USER" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") --auth-local=trust --auth-host=scram-sha-256 \
        $POSTGRES_INITDB_ARGS
    printf '\nhost all all all %s\n' "$method" >> "$PGDATA/pg_hba.conf"

    # Only this script can connect during the setup.
    pg_ctl -D "$PGDATA" -o "-c listen_addresses='' -c unix_socket_directories=/var/run/postgresql" -w start
    local run=(psql --host=/var/run/postgresql --username="$POSTGRES_USER" --no-psqlrc --set=ON_ERROR_STOP=1)
    if [[ $POSTGRES_DB != postgres ]]; then
        "${run[@]}" --dbname=postgres --set=db="$POSTGRES_DB" <<< 'CREATE DATABASE :"db";'
    fi
    local file
    for file in /docker-entrypoint-initdb.d/*; do
        case $file in
            *.sh) if [[ -x $file ]]; then "$file"; else . "$file"; fi ;;
            *.sql) "${run[@]}" --dbname="$POSTGRES_DB" --file="$file" ;;
            *.sql.gz) gunzip --stdout "$file" | "${run[@]}" --dbname="$POSTGRES_DB" ;;
        esac
    done
    pg_ctl -D "$PGDATA" -m fast -w stop
}

[[ ${1:-} == -* ]] && set -- postgres "$@"
if [[ ${1:-} == postgres ]]; then
    if [[ $(id --user) == 0 ]]; then
        mkdir --parents "$PGDATA"
        chown --recursive postgres "$PGDATA"
        chmod 700 "$PGDATA"
        exec gosu postgres "$0" "$@"
    fi
    if [[ ! -s $PGDATA/PG_VERSION ]]; then
        initialise
    fi
    unset "${!POSTGRES_@}"
    set -- "$@" -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql
fi
exec "$@"
