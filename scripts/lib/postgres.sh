# PostgreSQL from the system's packages. Sourced by scripts/stack.
#
# The server refuses to run as root, and its own user cannot enter root's home folder: as root
# everything of it runs as `postgres`, and the data folder must be reachable for that user.

POSTGRES_LOG=$LOGS/postgres.log
POSTGRES_PASSWORD=postgres # on loopback only; the container of docker-compose.test.yml has the same

# postgres_bin: the folder with the newest server programs, 15 or newer; fails when there is none.
postgres_bin() {
  local folder version best='' best_version=14
  for folder in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin "$(dirname "$(readlink -f "$(command -v postgres || echo /none/none)")")"; do
    [[ -x $folder/postgres && -x $folder/initdb ]] || continue
    version=$("$folder/postgres" --version | sed 's/^[^0-9]*\([0-9]*\).*/\1/')
    if ((version > best_version)); then best=$folder best_version=$version; fi
  done
  [[ $best ]] && echo "$best"
}

# as_postgres: words to put before a command so that it runs as PostgreSQL's user; the process id stays.
as_postgres() { if [[ $EUID == 0 ]]; then echo setpriv --reuid postgres --regid postgres --init-groups --; fi; }

start_postgres() {
  ! recorded postgres >/dev/null || return 0
  local data=$STACK_DATA/postgres bin as settings killed
  bin=$(postgres_bin)
  as=$(as_postgres)
  if [[ ! -e $data/PG_VERSION ]]; then
    rm -rf "$data"
    mkdir -m 700 "$data"
    if [[ $as ]]; then
      chown postgres: "$data"
      # shellcheck disable=SC2086
      $as test -w "$data" || fail "PostgreSQL's user cannot reach $data; set STACK_DATA to a folder outside home folders"
    fi
    printf '%s\n' "$POSTGRES_PASSWORD" >"$STACK_DATA/postgres.password"
    # shellcheck disable=SC2086
    (cd / && LC_ALL=C.UTF-8 $as "$bin/initdb" -D "$data" -U postgres --pwfile="$STACK_DATA/postgres.password" \
      -E UTF8 --locale=C.UTF-8 --auth=scram-sha-256 --no-sync >"$LOGS/initdb.log" 2>&1) ||
      { cat "$LOGS/initdb.log" >&2; rm -rf "$data"; fail "cannot prepare PostgreSQL's folder"; }
    rm -f "$STACK_DATA/postgres.password"
  fi
  # a server that was killed may not be reaped yet, and PostgreSQL takes a zombie for a running one
  killed=$(head -n 1 "$data/postmaster.pid" 2>/dev/null) || true
  if [[ $killed && $(sed 's/.*) //' "/proc/$killed/stat" 2>/dev/null) == Z* ]]; then rm "$data/postmaster.pid"; fi
  settings=(-c "port=$POSTGRES_PORT" -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=300
    -c logging_collector=off -c log_min_messages=warning -c timezone=UTC)
  # a stack that is thrown away need not survive a power cut
  if [[ $STACK_DURABLE == no ]]; then settings+=(-c fsync=off); fi
  # shellcheck disable=SC2206
  settings+=(${STACK_POSTGRES_SETTINGS:-})
  # shellcheck disable=SC2086
  (cd / && LC_ALL=C.UTF-8 spawn postgres "$POSTGRES_LOG" $as "$bin/postgres" -D "$data" "${settings[@]}")
}

postgres_answers() { "$(postgres_bin)/pg_isready" -q -h 127.0.0.1 -p "$POSTGRES_PORT" -U postgres; }
wait_postgres() { wait_for postgres "$POSTGRES_LOG" "$STACK_READY_SECONDS" postgres_answers; }
stop_postgres() { stop_part postgres INT 20; } # SIGINT: end sessions, write a checkpoint, exit
