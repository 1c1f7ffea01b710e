# Redis from the system's packages. Sourced by scripts/stack.

REDIS_LOG=$LOGS/redis.log

start_redis() {
  ! recorded redis >/dev/null || return 0
  mkdir -p "$STACK_DATA/redis"
  local keep=yes
  if [[ $STACK_DURABLE == no ]]; then keep=no; fi
  (cd "$STACK_DATA/redis" && spawn redis "$REDIS_LOG" redis-server --port "$REDIS_PORT" --bind 127.0.0.1 \
    --dir "$STACK_DATA/redis" --save '' --appendonly "$keep" --daemonize no)
}

redis_answers() {
  local reply
  { exec 3<>"/dev/tcp/127.0.0.1/$REDIS_PORT"; } 2>/dev/null || return 1
  printf 'PING\r\n' >&3
  read -r -t 2 reply <&3 || reply=
  exec 3>&-
  [[ $reply == +PONG* ]]
}
wait_redis() { wait_for redis "$REDIS_LOG" "$STACK_READY_SECONDS" redis_answers; }
stop_redis() { stop_part redis TERM 10; }
