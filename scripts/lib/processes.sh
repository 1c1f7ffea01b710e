# Processes, ports and waiting. Sourced; expects $RUN, the folder of process records.
#
# A process is known by its id *and* its start time, so that a record left from yesterday can never
# make us stop a stranger that got the same id today. Linux only: it reads /proc.

say() { printf '%s\n' "stack: $*" >&2; }
fail() { say "$*"; exit 1; }

# start_time PID: the ticks at which a living process started; fails for dead ones and zombies.
start_time() {
  local stat
  { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
  stat=${stat##*) } # the name before it may hold spaces
  # shellcheck disable=SC2086
  set -- $stat
  [[ $1 != Z && $1 != X ]] || return 1
  echo "${20}"
}

# is_alive PID START
is_alive() { [[ $(start_time "$1") == "$2" ]]; }

# recorded NAME: the id of a part that runs, or failure.
recorded() {
  local pid start
  { read -r pid start <"$RUN/$1.pid"; } 2>/dev/null || return 1
  is_alive "$pid" "$start" && echo "$pid"
}

# spawn NAME LOG COMMAND…: starts a process in a session of its own (Ctrl-C in our terminal does not
# reach it) that records itself before it becomes COMMAND: whoever finds no record finds no process.
spawn() {
  local name=$1 log=$2
  shift 2
  rm -f "$RUN/$name.pid" # of a process that is gone: it must not pass for the one that is just starting
  # shellcheck disable=SC2016
  setsid bash -c '
    # nothing of ours stays open in a daemon: no lock, no pipe that a caller reads to its end
    for fd in /proc/$$/fd/*; do fd=${fd##*/}; ((fd > 2)) && eval "exec $fd>&-"; done
    record=$1 stat=$(<"/proc/$$/stat"); shift
    read -r -a fields <<<"${stat##*) }"
    echo "$$ ${fields[19]}" >"$record.new" && mv "$record.new" "$record" && exec "$@"
  ' spawn "$RUN/$name.pid" "$@" </dev/null >>"$log" 2>&1 &
  disown $!
}

# tree PID: a process and its direct children (PostgreSQL's backends have sessions of their own).
tree() {
  echo "$1"
  cat /proc/[0-9]*/stat 2>/dev/null | sed -n "s/^\([0-9]*\) (.*) [A-Z] $1 .*/\1/p"
}

# kill_part NAME: takes a part and its children away at once, stopped (SIGSTOP) ones too.
kill_part() {
  local pid
  pid=$(recorded "$1") || { rm -f "$RUN/$1.pid"; return 0; }
  # shellcheck disable=SC2046
  kill -KILL $(tree "$pid") 2>/dev/null || true
  until_or_give_up 10 part_is_gone "$1" || say "$1 (process $pid) does not go away"
  rm -f "$RUN/$1.pid"
}

# stop_part NAME SIGNAL SECONDS: asks a part to end, and takes it away when it does not in time.
stop_part() {
  local pid
  pid=$(recorded "$1") || { rm -f "$RUN/$1.pid"; return 0; }
  # shellcheck disable=SC2046
  kill -CONT $(tree "$pid") 2>/dev/null || true
  kill "-$2" "$pid" 2>/dev/null || true
  if until_or_give_up "$3" part_is_gone "$1"; then rm -f "$RUN/$1.pid"; else kill_part "$1"; fi
}

part_is_gone() { ! recorded "$1" >/dev/null; }

# until_or_give_up SECONDS COMMAND…: true as soon as COMMAND is.
until_or_give_up() {
  local deadline=$((SECONDS + $1 + 1))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.1
  done
}

# ended NAME BORN: a part that recorded itself is gone, or none did by BORN. The record may appear between two looks: the
# file comes first.
ended() { if [[ -e $RUN/$1.pid ]]; then ! recorded "$1" >/dev/null; else ((SECONDS > $2)); fi; }

# wait_for NAME LOG SECONDS COMMAND…: waits until a part answers; it must stay alive meanwhile.
wait_for() {
  local name=$1 log=$2 deadline=$((SECONDS + $3 + 1)) born=$((SECONDS + 5))
  shift 3
  until "$@" 2>/dev/null; do
    if ended "$name" "$born"; then
      say "$name ended while starting:"
      tail -n 20 "$log" >&2
      return 1
    fi
    if ((SECONDS >= deadline)); then
      say "$name did not answer in time:"
      tail -n 20 "$log" >&2
      return 1
    fi
    sleep 0.1
  done
}

# connects PORT: somebody on this machine accepts connections there.
connects() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# is_listened PORT: the same without connecting, for any address.
is_listened() {
  local hex
  printf -v hex ':%04X' "$1"
  cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk -v p="$hex" '$4 == "0A" && $2 ~ p "$" { f = 1 } END { exit !f }'
}

# port_owner PORT: "name (process id)" of the listener, as far as we may see it.
port_owner() {
  local hex inode link pid
  printf -v hex ':%04X' "$1"
  inode=$(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk -v p="$hex" '$4 == "0A" && $2 ~ p "$" { print $10; exit }')
  link=$(find /proc/[0-9]*/fd -lname "socket:\[$inode\]" -print -quit 2>/dev/null || true)
  pid=${link#/proc/} pid=${pid%%/*}
  if [[ $pid ]]; then echo "$(cat "/proc/$pid/comm") (process $pid)"; else echo "another user's process"; fi
}

# require_free PORT WHAT VARIABLE
require_free() {
  ! is_listened "$1" || fail "port $1 for $2 is taken by $(port_owner "$1"); set $3 to move ours"
}

# free_port: a port nobody listens on, below the range that outgoing connections take theirs from
# (so that a part can be stopped and started again on its port).
free_port() {
  local port
  for _ in {1..200}; do
    port=$((20000 + RANDOM % 12000))
    if ! is_listened "$port"; then echo "$port"; return; fi
  done
  fail "no free port between 20000 and 32000"
}
