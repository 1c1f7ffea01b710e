# One Apache Kafka node in KRaft mode, from its Maven Central artefacts. Sourced by scripts/stack.

KAFKA_VERSION=4.1.1
LOG4J_VERSION=2.24.3 # the one Kafka brings; it leaves the binding of its own log to the distribution
DEPENDENCY_PLUGIN=org.apache.maven.plugins:maven-dependency-plugin:3.8.1
KAFKA_LIBS=$STACK_CACHE/kafka-$KAFKA_VERSION
KAFKA_LOG=$LOGS/kafka.log

java_program() { if [[ ${JAVA_HOME:-} ]]; then echo "$JAVA_HOME/bin/java"; else echo java; fi; }

# The jars are fetched once, by one process at a time, and appear as a whole or not at all.
fetch_kafka() {
  [[ ! -d $KAFKA_LIBS ]] || return 0
  mkdir -p "$STACK_CACHE"
  exec 8>"$STACK_CACHE/kafka.lock"
  flock 8
  if [[ ! -d $KAFKA_LIBS ]]; then
    say "fetching Apache Kafka $KAFKA_VERSION from Maven Central (43 MB, once) into $KAFKA_LIBS"
    local work
    work=$(mktemp -d "$STACK_CACHE/fetch.XXXXXX")
    cat >"$work/pom.xml" <<XML
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId><artifactId>kafka-jars</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$KAFKA_VERSION</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>$LOG4J_VERSION</version></dependency>
  </dependencies>
</project>
XML
    (cd "$work" && timeout 600 mvn -q -B -Dstyle.color=never --strict-checksums "$DEPENDENCY_PLUGIN:copy-dependencies" \
      -DincludeScope=runtime -DoutputDirectory="$work/libs") >"$work/log" 2>&1 ||
      { tail -n 20 "$work/log" >&2; rm -rf "$work"; fail "Maven could not fetch Kafka"; }
    mv "$work/libs" "$KAFKA_LIBS"
    rm -rf "$work"
  fi
  exec 8>&-
}

# Settings for one machine and quick tests: few partitions of the inner topics, no wait for a group
# to gather, topics only on purpose, small index files (they are allocated ahead: two per segment).
kafka_properties() {
  local nodes replicas
  nodes=$(tr ',' '\n' <<<"$STACK_KAFKA_VOTERS" | wc -l)
  replicas=$((nodes < 3 ? nodes : 3))
  cat <<PROPERTIES
process.roles=broker,controller
node.id=$STACK_KAFKA_NODE_ID
controller.quorum.voters=$STACK_KAFKA_VOTERS
listeners=CLIENTS://127.0.0.1:$KAFKA_PORT,CONTROLLER://127.0.0.1:$CONTROLLER_PORT
advertised.listeners=CLIENTS://127.0.0.1:$KAFKA_PORT
listener.security.protocol.map=CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=CLIENTS
controller.listener.names=CONTROLLER
log.dirs=$STACK_DATA/kafka
auto.create.topics.enable=false
default.replication.factor=$replicas
offsets.topic.replication.factor=$replicas
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=$replicas
transaction.state.log.num.partitions=8
transaction.state.log.min.isr=$((replicas > 1 ? 2 : 1))
share.coordinator.state.topic.replication.factor=$replicas
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.segment.bytes=134217728
log.index.size.max.bytes=1048576
PROPERTIES
  # more lines for a test's own broker
  printf '%s\n' "${STACK_KAFKA_PROPERTIES:-}"
}

kafka_classpath() { echo "$KAFKA_LIBS/*"; }

start_kafka() {
  ! recorded kafka >/dev/null || return 0
  local settings=$STACK_DATA/kafka.properties jvm=(-Xms128m "-Xmx$STACK_KAFKA_HEAP" -Djava.awt.headless=true)
  # a throw-away broker starts faster and smaller without the optimising compiler and its collector
  if [[ $STACK_DURABLE == no ]]; then jvm+=(-XX:+UseSerialGC -XX:TieredStopAtLevel=1); else jvm+=(-XX:+UseG1GC -XX:MaxGCPauseMillis=20); fi
  jvm+=("-Dlog4j2.configurationFile=$HERE/lib/kafka-log4j2.properties")
  kafka_properties >"$settings"
  if [[ ! -e $STACK_DATA/kafka/meta.properties ]]; then
    "$(java_program)" -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp "$(kafka_classpath)" kafka.tools.StorageTool format \
      --cluster-id "$STACK_KAFKA_CLUSTER_ID" --config "$settings" --ignore-formatted >"$LOGS/kafka-format.log" 2>&1 ||
      { cat "$LOGS/kafka-format.log" >&2; fail "cannot prepare Kafka's folder"; }
  fi
  if [[ -e $KAFKA_LOG ]]; then mv "$KAFKA_LOG" "$KAFKA_LOG.1"; fi
  (cd "$STACK_DATA" && spawn kafka "$KAFKA_LOG" "$(java_program)" "${jvm[@]}" -cp "$(kafka_classpath)" kafka.Kafka "$settings")
}

kafka_answers() { grep -q 'Kafka Server started' "$KAFKA_LOG" && connects "$KAFKA_PORT"; }
wait_kafka() { wait_for kafka "$KAFKA_LOG" "$STACK_READY_SECONDS" kafka_answers; }
stop_kafka() { stop_part kafka TERM 20; }

# 16 random bytes as Kafka writes them: 22 characters of URL-safe base64, not starting with a dash.
random_cluster_id() {
  local id
  id=$(head -c 16 /dev/urandom | base64 | tr '+/' '-_')
  echo "k${id:1:20}A"
}
