# What a machine must have, and putting it there on Debian and Ubuntu. Sourced by scripts/stack and scripts/test.

is_debian() { [[ -r /etc/os-release ]] && (. /etc/os-release && [[ " ${ID:-} ${ID_LIKE:-} " == *" debian "* || " ${ID:-} " == *" ubuntu "* ]]); }

has() { command -v "$1" >/dev/null 2>&1; }

has_java() {
  local version
  version=$("$(java_program)" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1) || return 1
  [[ $version ]] && ((version >= 17))
}

# wanted_for PART: one line per missing thing, "what it is|Debian package".
missing_for() {
  case $1 in
    kafka)
      has_java || echo "a Java runtime, 17 or newer|$(java_package)"
      [[ -d $KAFKA_LIBS ]] || has mvn || echo "Maven|maven"
      ;;
    postgres) postgres_bin >/dev/null || echo "PostgreSQL, 15 or newer|postgresql" ;;
    redis) has redis-server || echo "Redis|redis-server" ;;
    pooler) has pgbouncer || [[ -x /usr/sbin/pgbouncer ]] || echo "PgBouncer|pgbouncer" ;;
    build)
      local program
      for program in gcc g++ cmake make pkg-config perl curl; do has "$program" || echo "$program|${program/g++/g++}"; done
      pkg-config --exists openssl 2>/dev/null || echo "OpenSSL's headers|libssl-dev"
      has psql || echo "PostgreSQL's client|postgresql-client"
      [[ -e /etc/ssl/certs/ca-certificates.crt ]] || echo "CA certificates|ca-certificates"
      ;;
  esac
}

# The newest runtime that the system offers without asking for a particular one.
java_package() {
  local package
  for package in openjdk-25-jre-headless openjdk-21-jre-headless openjdk-17-jre-headless; do
    if apt-cache show "$package" >/dev/null 2>&1; then echo "$package"; return; fi
  done
  echo default-jre-headless
}

# need PARTS…: returns when everything is there; else installs it, or names it and fails.
need() {
  local missing
  missing=$(for part in "$@"; do missing_for "$part"; done)
  [[ $missing ]] || return 0
  if ! is_debian; then
    say "this machine lacks:"
    sed 's/|.*//; s/^/  - /' <<<"$missing" >&2
    say "install them with the system's package manager, or use Docker's parts: STACK=docker"
    fail "the tests also run in a container: docker run --rm -it -v \"\$PWD\":/src -w /src rust:1.95-bookworm make test"
  fi
  if [[ ${STACK_INSTALL:-yes} == no || $EUID != 0 ]]; then
    say "this machine lacks:"
    sed 's/^\(.*\)|\(.*\)$/  - \1 (package \2)/' <<<"$missing" >&2
    fail "install as root: apt-get install --no-install-recommends $(packages <<<"$missing")"
  fi
  if [[ ! -d /var/lib/apt/lists || -z $(find /var/lib/apt/lists -name '*_Packages*' -print -quit) ]]; then
    apt-get update -qq >&2 || fail "apt-get update failed"
    missing=$(for part in "$@"; do missing_for "$part"; done) # the package names may differ now
  fi
  install_packages "$(packages <<<"$missing")"
  missing=$(for part in "$@"; do missing_for "$part"; done)
  [[ -z $missing ]] || fail "still missing after the installation: $(sed 's/|.*//' <<<"$missing" | paste -sd ,)"
}

packages() { sed 's/.*|//' | sort -u | paste -sd ' '; }

# install_packages "NAMES": Debian starts a server with its package and makes a PostgreSQL cluster on
# 5432; we want the programs alone.
install_packages() {
  local policy=/usr/sbin/policy-rc.d clusters=/etc/postgresql-common/createcluster.conf ours=no log
  say "installing with apt-get (STACK_INSTALL=no refuses): $1"
  if [[ ! -e $policy ]]; then
    ours=yes
    # removed again however this ends
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi
  if [[ ! -e $clusters ]]; then
    say "PostgreSQL's package makes no cluster of its own: create_main_cluster = false in $clusters"
    mkdir -p "${clusters%/*}"
    echo 'create_main_cluster = false' >"$clusters"
  fi
  log=$(mktemp)
  # shellcheck disable=SC2086
  if ! { apt_install $1 || { apt-get update -qq && apt_install $1; }; } >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    fail "the installation failed"
  fi
  rm -f "$log"
  if [[ $ours == yes ]]; then
    rm -f "$policy"
    trap - EXIT
  fi
}

apt_install() {
  DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1 apt-get install -y -q --no-install-recommends \
    -o Dpkg::Options::=--force-confold -o DPkg::Lock::Timeout=300 "$@"
}
