#!/bin/sh
# As Kafka's script of this name: heap and options from variables, the worker's file as argument.
set -eu
# shellcheck disable=SC2086 # several words
exec java ${KAFKA_HEAP_OPTS:--Xmx2G} ${KAFKA_JVM_PERFORMANCE_OPTS:-} ${KAFKA_OPTS:-} \
    ${KAFKA_LOG4J_OPTS:--Dlog4j2.configurationFile=/opt/kafka/config/log4j2.yaml} \
    -cp '/opt/kafka/libs/*' org.apache.kafka.connect.cli.ConnectDistributed "$@"
