# The same three parts as containers of docker-compose.test.yml. Sourced by scripts/stack.

compose() {
  STACK_KAFKA_PORT=$KAFKA_PORT STACK_POSTGRES_PORT=$POSTGRES_PORT STACK_REDIS_PORT=$REDIS_PORT \
    docker compose -p "$STACK_PROJECT" -f "$ROOT/docker-compose.test.yml" "$@"
}

# docker_is_usable: an engine answers, has Compose, and has the images or gets them in time. A blocked
# registry does not refuse, it hangs: hence the bound.
docker_is_usable() {
  has docker && timeout 10 docker info >/dev/null 2>&1 && timeout 10 docker compose version >/dev/null 2>&1 || return 1
  local image missing=()
  for image in $(compose config --images kafka postgres redis 2>/dev/null); do
    docker image inspect "$image" >/dev/null 2>&1 || missing+=("$image")
  done
  [[ ${#missing[@]} -gt 0 ]] || return 0
  say "pulling ${missing[*]} (at most ${STACK_PULL_SECONDS} s)"
  for image in "${missing[@]}"; do
    timeout "$STACK_PULL_SECONDS" docker pull -q "$image" >/dev/null 2>&1 || { say "cannot pull $image"; return 1; }
  done
}

docker_up() { compose up -d --wait kafka postgres redis >&2 || fail "docker compose could not start the parts"; }

docker_down() {
  if [[ $1 == wipe ]]; then compose down -v >&2; else compose stop kafka postgres redis >&2; fi
}
