import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.management.ManagementFactory;
import java.nio.ByteBuffer;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.LongAdder;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.generic.GenericDatumWriter;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.io.BinaryDecoder;
import org.apache.avro.io.BinaryEncoder;
import org.apache.avro.io.DecoderFactory;
import org.apache.avro.io.EncoderFactory;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.EmitStrategy;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.kstream.Windowed;
import org.apache.kafka.streams.processor.TimestampExtractor;
import org.apache.kafka.streams.state.Stores;

/**
 * The agg-producer's windows and averages as a Kafka Streams user would write them: exactly once,
 * in-memory store with its changelog, records by the Avro library's GenericRecord, one result a
 * window when it closes.
 *
 * <p>It does less than the agg-producer: each window's EWMA begins anew, repeats are counted,
 * closed windows take no late trades, and nothing is closed on a quiet topic.
 *
 * <p>{@code Averages BOOTSTRAP TOPIC OUTPUT TOTAL RAW.avsc AVERAGE.avsc SCHEMA_ID THREADS STATE_DIR}
 * prints records, seconds and CPU-seconds behind the first ones to the last, and how many results
 * were given to the producer.
 */
public final class Averages {
  private static final long PERIOD_MS = 300_000;
  private static final long LATENESS_MS = 2_000;
  private static final double ALPHA = 2.0 / 301;
  private static final int WIRE_HEADER = 5;

  private static final LongAdder SEEN = new LongAdder();
  private static final LongAdder RESULTS = new LongAdder();

  private Averages() {}

  /** A window's sums; mutable, as a store's values are written out after each change. */
  private static final class Sums {
    static final int SIZE = 12 * 8;
    long count;
    long firstSeq;
    long lastSeq;
    double price;
    double amount;
    double product;
    double low = Double.POSITIVE_INFINITY;
    double high = Double.NEGATIVE_INFINITY;
    double open;
    double close;
    double seed;
    double ewma;

    Sums add(GenericRecord trade) {
      double p = (Double) trade.get("price");
      double a = (Double) trade.get("amount");
      long seq = (Long) trade.get("trade_seq");
      if (count == 0) {
        seed = p;
        ewma = p;
      }
      if (count == 0 || seq < firstSeq) {
        firstSeq = seq;
        open = p;
      }
      if (count == 0 || seq > lastSeq) {
        lastSeq = seq;
        close = p;
      }
      ewma = ALPHA * p + (1 - ALPHA) * ewma;
      count++;
      price += p;
      amount += a;
      product += p * a;
      low = Math.min(low, p);
      high = Math.max(high, p);
      return this;
    }
  }

  private static final class SumsSerde implements Serde<Sums> {
    @Override
    public Serializer<Sums> serializer() {
      return (topic, s) ->
          s == null
              ? null
              : ByteBuffer.allocate(Sums.SIZE)
                  .putLong(s.count).putLong(s.firstSeq).putLong(s.lastSeq)
                  .putDouble(s.price).putDouble(s.amount).putDouble(s.product)
                  .putDouble(s.low).putDouble(s.high).putDouble(s.open).putDouble(s.close)
                  .putDouble(s.seed).putDouble(s.ewma)
                  .array();
    }

    @Override
    public Deserializer<Sums> deserializer() {
      return (topic, bytes) -> {
        if (bytes == null) {
          return null;
        }
        ByteBuffer b = ByteBuffer.wrap(bytes);
        Sums s = new Sums();
        s.count = b.getLong();
        s.firstSeq = b.getLong();
        s.lastSeq = b.getLong();
        s.price = b.getDouble();
        s.amount = b.getDouble();
        s.product = b.getDouble();
        s.low = b.getDouble();
        s.high = b.getDouble();
        s.open = b.getDouble();
        s.close = b.getDouble();
        s.seed = b.getDouble();
        s.ewma = b.getDouble();
        return s;
      };
    }
  }

  /** Records of one schema in Confluent's wire format; one decoder and one record a thread. */
  private static final class AvroSerde implements Serde<GenericRecord> {
    private final Schema schema;
    private final int schemaId;

    AvroSerde(Schema schema, int schemaId) {
      this.schema = schema;
      this.schemaId = schemaId;
    }

    @Override
    public Serializer<GenericRecord> serializer() {
      GenericDatumWriter<GenericRecord> writer = new GenericDatumWriter<>(schema);
      ByteArrayOutputStream out = new ByteArrayOutputStream(256);
      ThreadLocal<BinaryEncoder> reuse = new ThreadLocal<>();
      return (topic, record) -> {
        synchronized (out) {
          out.reset();
          out.writeBytes(ByteBuffer.allocate(WIRE_HEADER).put((byte) 0).putInt(schemaId).array());
          BinaryEncoder encoder = EncoderFactory.get().binaryEncoder(out, reuse.get());
          reuse.set(encoder);
          try {
            writer.write(record, encoder);
            encoder.flush();
          } catch (IOException error) {
            throw new UncheckedIOException(error);
          }
          return out.toByteArray();
        }
      };
    }

    @Override
    public Deserializer<GenericRecord> deserializer() {
      GenericDatumReader<GenericRecord> reader = new GenericDatumReader<>(schema);
      ThreadLocal<BinaryDecoder> reuse = new ThreadLocal<>();
      return (topic, bytes) -> {
        BinaryDecoder decoder =
            DecoderFactory.get()
                .binaryDecoder(bytes, WIRE_HEADER, bytes.length - WIRE_HEADER, reuse.get());
        reuse.set(decoder);
        try {
          return reader.read(null, decoder);
        } catch (IOException error) {
          throw new UncheckedIOException(error);
        }
      };
    }
  }

  private static GenericRecord average(Schema schema, Windowed<String> window, Sums s) {
    GenericRecord record = new GenericData.Record(schema);
    record.put("instrument_name", window.key());
    record.put("window_start", window.window().start());
    record.put("window_end", window.window().end());
    record.put("period", PERIOD_MS / 1000);
    record.put("alpha", ALPHA);
    record.put("seed", s.seed);
    record.put("current", s.ewma);
    record.put("sma", s.price / s.count);
    record.put("vwap", s.amount == 0 ? null : s.product / s.amount);
    record.put("open", s.open);
    record.put("high", s.high);
    record.put("low", s.low);
    record.put("close", s.close);
    record.put("trade_count", s.count);
    record.put("volume", s.amount);
    record.put("first_trade_seq", s.firstSeq);
    record.put("last_trade_seq", s.lastSeq);
    record.put("revision", 0L);
    record.put("closed_by", "watermark");
    RESULTS.increment();
    return record;
  }

  private static StreamsBuilder topology(
      String topic, String output, Schema raw, Schema average, int schemaId) {
    TimestampExtractor eventTime =
        (record, partitionTime) -> {
          SEEN.increment();
          return (Long) ((GenericRecord) record.value()).get("timestamp");
        };
    StreamsBuilder builder = new StreamsBuilder();
    builder.stream(
            topic,
            Consumed.with(Serdes.String(), (Serde<GenericRecord>) new AvroSerde(raw, 0))
                .withTimestampExtractor(eventTime))
        .groupByKey()
        .windowedBy(
            TimeWindows.ofSizeAndGrace(
                Duration.ofMillis(PERIOD_MS), Duration.ofMillis(LATENESS_MS)))
        .emitStrategy(EmitStrategy.onWindowClose())
        .aggregate(
            Sums::new,
            (key, trade, sums) -> sums.add(trade),
            Materialized.<String, Sums>as(
                    Stores.inMemoryWindowStore(
                        "windows",
                        Duration.ofMillis(PERIOD_MS + LATENESS_MS),
                        Duration.ofMillis(PERIOD_MS),
                        false))
                .withKeySerde(Serdes.String())
                .withValueSerde(new SumsSerde()))
        .toStream()
        .map(
            (window, sums) ->
                KeyValue.pair(
                    window.key() + "|" + window.window().start(), average(average, window, sums)))
        .to(output, Produced.with(Serdes.String(), new AvroSerde(average, schemaId)));
    return builder;
  }

  private static Properties settings(String bootstrap, String topic, int threads, String folder) {
    Properties settings = new Properties();
    settings.put(StreamsConfig.APPLICATION_ID_CONFIG, Path.of(folder).getFileName().toString());
    settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap);
    settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
    settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, threads);
    settings.put(StreamsConfig.STATE_DIR_CONFIG, folder);
    settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 1_000); // as the agg-producer
    settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
    settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), 10_000);
    settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
    settings.put(StreamsConfig.producerPrefix(ProducerConfig.COMPRESSION_TYPE_CONFIG), "lz4");
    return settings;
  }

  private static double cpuSeconds() {
    return ((com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean())
            .getProcessCpuTime()
        / 1e9;
  }

  public static void main(String[] args) throws Exception {
    long total = Long.parseLong(args[3]);
    Schema raw = new Schema.Parser().parse(Path.of(args[4]).toFile());
    Schema average = new Schema.Parser().parse(Path.of(args[5]).toFile());
    StreamsBuilder builder =
        topology(args[1], args[2], raw, average, Integer.parseInt(args[6]));
    Properties settings = settings(args[0], args[1], Integer.parseInt(args[7]), args[8]);
    CountDownLatch failed = new CountDownLatch(1);
    try (KafkaStreams streams = new KafkaStreams(builder.build(), settings)) {
      streams.setUncaughtExceptionHandler(
          error -> {
            error.printStackTrace();
            failed.countDown();
            return org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler
                .StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
          });
      streams.start();
      long first = 0;
      long began = 0;
      double cpuBegan = 0;
      long half = 0;
      long halfSeen = 0;
      while (SEEN.sum() < total && failed.getCount() > 0) {
        Thread.sleep(5);
        long seen = SEEN.sum();
        if (first == 0 && seen > 0) {
          first = seen;
          began = System.nanoTime();
          cpuBegan = cpuSeconds();
        }
        if (half == 0 && seen >= total / 2) {
          half = System.nanoTime();
          halfSeen = seen;
        }
      }
      long now = System.nanoTime();
      double cpu = cpuSeconds() - cpuBegan;
      if (failed.getCount() == 0) {
        System.exit(1);
      }
      System.out.printf(
          "{\"records\": %d, \"seconds\": %.4f, \"cpu_s\": %.4f, \"warm_per_s\": %.1f, "
              + "\"results\": %d}%n",
          total - first,
          (now - began) / 1e9,
          cpu,
          (total - halfSeen) * 1e9 / (now - half),
          RESULTS.sum());
      System.out.flush();
    }
  }
}
