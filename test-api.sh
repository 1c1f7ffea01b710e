#!/usr/bin/env bash
# Exercises every endpoint of a running bulkerapp, posts the sample, waits for its rows, and has one event refused and
# loaded after a repair. A line for each check; exit status 1 when an answer is wrong. Works against `make run` and against docker-compose.test.yml alike.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

URL=${BULKER_URL:-http://localhost:12000}
METRICS_URL=${BULKER_METRICS_URL:-http://localhost:9091}
TOKEN=${BULKER_TOKEN:-test-token-123}
ADMIN_TOKEN=${BULKER_ADMIN_TOKEN:-admin-token-456}
DESTINATION=${BULKER_DESTINATION_ID:-postgres}
SCHEMA=${BULKER_SCHEMA:-bulker}
# what bulkerapp loads into; without psql on this machine the compose file's container is asked
DATABASE_URL=${DATABASE_URL:-postgres://bulker:bulker@localhost:15432/postgres}
LOAD_SECONDS=${LOAD_SECONDS:-90}

run_id=run-$(date +%s)-$$
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

ok() { printf 'ok    %s\n' "$1"; }
wrong() { printf 'WRONG %s\n      %s\n' "$1" "$2"; failures=$((failures + 1)); }

# check NAME STATUS [TEXT] -- CURL ARGUMENTS: the answer's status, and a text that its body holds.
check() {
  local name=$1 status=$2 text=''
  shift 2
  if [[ $1 != -- ]]; then text=$1; shift; fi
  shift
  local got
  got=$(curl -sS -o "$work/body" -w '%{http_code}' --max-time 30 "$@" 2>"$work/error") || got="no answer: $(cat "$work/error")"
  if [[ $got != "$status" ]]; then
    wrong "$name" "expected $status, got $got: $(head -c 300 "$work/body" 2>/dev/null)"
  elif [[ $text ]] && ! grep -qF -- "$text" "$work/body"; then
    wrong "$name" "body without '$text': $(head -c 300 "$work/body")"
  else
    ok "$name"
  fi
}

sql() {
  if command -v psql >/dev/null; then
    psql -X -qAt -d "$DATABASE_URL" -c "$1"
  else
    docker compose -f docker-compose.test.yml exec -T postgres psql -X -qAt -U bulker -d postgres -c "$1"
  fi
}

auth=(-H "Authorization: Bearer $TOKEN")
admin=(-H "Authorization: Bearer $ADMIN_TOKEN")
post=("${auth[@]}" -X POST -H 'Content-Type: application/json')
table="$URL/post/$DESTINATION?tableName=api_check"

echo "bulkerapp at $URL, run $run_id"
check 'GET /ready'                             200 '"status"' -- "$URL/ready"
check 'GET /health'                            200 '"status"' -- "$URL/health"
check 'unknown path'                           404 '404 page not found' -- "${auth[@]}" "$URL/nowhere"
check 'unknown path without token'             401 -- "$URL/nowhere"
check 'POST /post'                             200 '{"message":"ok"}' -- "${post[@]}" -d '{"id":1}' "$table"
check 'POST /post with the admin token'        200 '{"message":"ok"}' -- -X POST -H "Authorization: Bearer $ADMIN_TOKEN" -d '{"id":2}' "$table"
check 'POST /post, a table of hostile name'    200 '{"message":"ok"}' -- "${post[@]}" -d '{"id":1,"a\"; drop table x; --":1,"🙂":2}' \
  "$URL/post/$DESTINATION?tableName=%22%3B%20drop%20table%20%F0%9F%99%82"
check 'POST /post without token'               401 'Authorization header with Bearer token is required' -- -X POST -d '{}' "$table"
check 'POST /post with a wrong token'          401 -- -X POST -H 'Authorization: Bearer not-the-token' -d '{}' "$table"
grep -q 'not-the-token' "$work/body" && wrong 'the answer hides the token' "$(cat "$work/body")"
check 'POST /post, unknown destination'        404 'destination not found' -- "${post[@]}" -d '{}' "$URL/post/nobody?tableName=t"
check 'POST /post without tableName'           400 'tableName query parameter is required' -- "${post[@]}" -d '{}' "$URL/post/$DESTINATION"
check 'POST /post, bad modeOverride'           400 'invalid bulker mode' -- "${post[@]}" -d '{}' "$table&modeOverride=sideways"
check 'POST /post, empty body'                 400 -- "${post[@]}" -d '' "$table"
check 'POST /post, garbage'                    400 -- "${post[@]}" -d '{"a":' "$table"
check 'POST /post, null'                       400 -- "${post[@]}" -d 'null' "$table"
check 'POST /post, an array'                   400 -- "${post[@]}" -d '[{"a":1}]' "$table"
long=$(printf 'x%.0s' $(seq 300))
check 'POST /post, a table of 300 characters'  400 'exceeds limit (249)' -- "${post[@]}" -d '{}' "$URL/post/$DESTINATION?tableName=$long"
{ printf '{"a":"'; head -c 2000000 /dev/zero | tr '\0' x; printf '"}'; } >"$work/large"
check 'POST /post, 2 MB'                       413 -- "${post[@]}" --data-binary "@$work/large" "$table"
bulk="$URL/bulk/$DESTINATION?tableName=api_check_bulk&mode=batch"
check 'POST /bulk'                             200 '"status":"COMPLETED","mode":"batch","processedRows":2' -- "${post[@]}" \
  --data-binary $'{"id":1}\n{"id":2}\n' "$bulk"
check 'POST /bulk, replace_table'              200 '"mode":"replace_table"' -- "${post[@]}" -d '{"id":3}' "$URL/bulk/$DESTINATION?tableName=api_check_bulk"
check 'POST /bulk, empty'                      200 '{"message":"ok"}' -- "${post[@]}" -d '' "$bulk"
check 'POST /bulk, ABORT'                      400 'aborted: ABORT' -- "${post[@]}" --data-binary $'{"id":1}\nABORT\n' "$bulk"
check 'POST /bulk, a bad line'                 400 'unmarhsal error' -- "${post[@]}" --data-binary $'{"id":1}\nnull\n' "$bulk"
check 'POST /bulk, unknown destination'        404 'destination not found' -- "${post[@]}" -d '{}' "$URL/bulk/nobody?tableName=t"
check 'POST /test, unknown type'               422 'unknown bulker implementation type: lake' -- "${post[@]}" -d '{"id":"a","destinationType":"lake"}' "$URL/test"
check 'POST /test, empty'                      422 'input data is empty' -- "${post[@]}" -d '' "$URL/test"
check 'POST /profiles, no such builder'        404 'topic not found' -- "${post[@]}" -d '' "$URL/profiles/nobody/high?profileId=1"
check 'GET /failed'                            200 -- -H "Authorization: Bearer $ADMIN_TOKEN" "$URL/failed/$DESTINATION"
check 'GET /failed, bad status'                400 'unknown status: lost' -- -H "Authorization: Bearer $ADMIN_TOKEN" "$URL/failed/$DESTINATION?status=lost"
check 'GET /failed with a user token'          403 'Administrator token is required' -- "${auth[@]}" "$URL/failed/$DESTINATION"
check 'GET /connections-metrics, short id'     400 'invalid workspaceId' -- "${auth[@]}" "$URL/connections-metrics/short"
check 'GET /metrics, own port'                 200 'bulkerapp_handler_events' -- "$METRICS_URL/metrics"
check 'GET /metrics, main port'                200 'bulkerapp_handler_events' -- "${auth[@]}" "$URL/metrics"

check 'GET /events'                            200 '"events":[' -- "${admin[@]}" "$URL/events?destinationId=$DESTINATION&limit=10"
check 'GET /events, unknown status'            400 "must be success or error" -- "${admin[@]}" "$URL/events?status=fine"
check 'GET /events without token'              401 -- "$URL/events"
check 'GET /events with a user token'          403 'Administrator token is required' -- "${auth[@]}" "$URL/events"
check 'GET /log with a user token'             403 'Administrator token is required' -- "${auth[@]}" "$URL/log/bulker_batch.all/$DESTINATION"
check 'GET /log'                               200 -- "${admin[@]}" "$URL/log/bulker_batch.all/$DESTINATION?limit=10"
check 'GET /log, no level'                     400 'bulker_batch.error' -- "${admin[@]}" "$URL/log/bulker_batch/$DESTINATION"

# the sample: one request per event over one connection
expected=$(wc -l <samples/events.ndjson)
number=0
while IFS= read -r event; do
  number=$((number + 1))
  printf '%s' "${event//RUN_ID/$run_id}" >"$work/$number.json"
  [[ $number == 1 ]] || echo next
  printf 'url = "%s"\nrequest = "POST"\nheader = "Authorization: Bearer %s"\ndata-binary = "@%s"\noutput = "/dev/null"\nwrite-out = "%%{http_code}\\n"\nsilent\n' \
    "$URL/post/$DESTINATION?tableName=sample_events" "$TOKEN" "$work/$number.json"
done <samples/events.ndjson >"$work/requests"
accepted=$(curl -K "$work/requests" 2>/dev/null | grep -c '^200$')
if [[ $accepted == "$expected" ]]; then ok "the sample: $accepted events answered with 200"; else wrong 'the sample' "$accepted of $expected events answered with 200"; fi

rows=0
for _ in $(seq "$LOAD_SECONDS"); do
  rows=$(sql "select count(*) from $SCHEMA.sample_events where run_id = '$run_id'" 2>/dev/null) || rows=0
  [[ ${rows:-0} -ge $expected ]] && break
  sleep 1
done
if [[ ${rows:-0} == "$expected" ]]; then ok "the sample: $rows rows, as many as events"; else wrong 'the sample' "${rows:-0} rows of $expected events after $LOAD_SECONDS s"; fi

check 'the destination is loaded exactly once'  200 "bulkerapp_exactly_once{destinationId=\"$DESTINATION\"} 1" -- "$METRICS_URL/metrics"

types='timestamp=timestamp with time zone
context_ip=inet
context_page_path=text
properties_price=double precision
properties_quantity=bigint
properties_in_stock=boolean
properties_total=numeric(12,2)
properties_products=text
traits_address=jsonb
traits_email=text
Größe _cm_=bigint'
while IFS='=' read -r column type; do
  got=$(sql "select format_type(atttypid, atttypmod) from pg_attribute where attrelid = '$SCHEMA.sample_events'::regclass and attname = '$column'" 2>/dev/null)
  if [[ $got == "$type" ]]; then ok "column $column is $type"; else wrong "column $column" "expected $type, got '${got}'"; fi
done <<<"$types"
named=$(sql "select count(*) from $SCHEMA.sample_events where run_id = '$run_id' and type = 'identify' and traits_address ->> 'city' is not null" 2>/dev/null)
if [[ ${named:-0} -gt 0 ]]; then ok "$named rows keep an object as jsonb"; else wrong 'jsonb values' "found ${named:-none}"; fi

# one event that the table refuses: it waits with its reason, and is loaded once the table is repaired
refused="$URL/failed/$DESTINATION?status=retry&tableName=api_refused&details=true&reason=amount_is_positive"
sql "set client_min_messages = warning; create table if not exists $SCHEMA.api_refused (run_id text, amount bigint);
  alter table $SCHEMA.api_refused drop constraint if exists amount_is_positive;
  alter table $SCHEMA.api_refused add constraint amount_is_positive check (amount > 0) not valid" >/dev/null ||
  wrong 'a table that refuses' 'psql could not make it'
check 'POST /post, to be refused'              200 '{"message":"ok"}' -- "${post[@]}" -d "{\"run_id\":\"$run_id\",\"amount\":-5}" \
  "$URL/post/$DESTINATION?tableName=api_refused"
for _ in $(seq "$LOAD_SECONDS"); do
  curl -sS --max-time 30 "${admin[@]}" "$refused" 2>/dev/null | grep -qF "$run_id" && break
  sleep 1
done
check 'GET /failed shows it with its reason'   200 "\"event\":{\"run_id\":\"$run_id\",\"amount\":-5}" -- "${admin[@]}" "$refused"
sql "alter table $SCHEMA.api_refused drop constraint amount_is_positive" || wrong 'the repair' 'psql could not change the table'
for _ in $(seq "$LOAD_SECONDS"); do
  rows=$(sql "select count(*) from $SCHEMA.api_refused where run_id = '$run_id'" 2>/dev/null) || rows=0
  [[ $rows == 1 ]] && break
  sleep 1
done
if [[ $rows == 1 ]]; then ok 'it is loaded after the repair'; else wrong 'the retry' "$rows rows of 1 event after $LOAD_SECONDS s"; fi
check 'GET /failed shows it no more'           200 -- "${admin[@]}" "$refused"
grep -qF "$run_id" "$work/body" && wrong 'GET /failed after the repair' "$(head -c 300 "$work/body")"

if [[ $failures == 0 ]]; then echo 'all answers are right'; else echo "$failures wrong"; exit 1; fi
