//! The two shapes of a log line that operators of the original parse already.
//!
//! Text: `time="2006-01-02 15:04:05" level=info msg="..." field=value`; JSON: one object a line
//! with `level`, `msg`, `time`. Fields of the event come after, then those of its spans, innermost
//! first; the first of a name wins. Times are UTC.

use std::{
    fmt::{self, Write as _},
    io::Write,
};

use jiff::Timestamp;
use serde_json::{Map, Value};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    span,
};
use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `key=value` pairs.
    Text,
    /// An object.
    Json,
}

impl LogFormat {
    /// What `LOG_FORMAT` stands for: `json`, or anything else.
    pub fn of(setting: &str) -> LogFormat {
        if setting == "json" { LogFormat::Json } else { LogFormat::Text }
    }
}

/// Writes a line per event to what `writer` makes.
pub(super) struct LogLayer<W> {
    format: LogFormat,
    writer: W,
}

impl<W> LogLayer<W> {
    pub(super) fn new(format: LogFormat, writer: W) -> LogLayer<W> {
        LogLayer { format, writer }
    }
}

impl<S, W, O> Layer<S> for LogLayer<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Fn() -> O + 'static,
    O: Write,
{
    fn on_new_span(
        &self,
        attributes: &span::Attributes<'_>,
        id: &span::Id,
        context: Context<'_, S>,
    ) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                for (name, value) in &of_span.values {
                    fields.values.entry(name.clone()).or_insert_with(|| value.clone());
                }
            }
        }
        let level = level_name(*event.metadata().level());
        let mut line = match self.format {
            LogFormat::Text => text_line(Timestamp::now(), level, &fields),
            LogFormat::Json => json_line(Timestamp::now(), level, &fields),
        };
        line.push('\n');
        // there is nowhere to report that the log cannot be written
        let _ = (self.writer)().write_all(line.as_bytes());
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

fn text_line(now: Timestamp, level: &str, fields: &Fields) -> String {
    let mut line = format!(
        "time=\"{}\" level={level} msg={}",
        now.strftime("%Y-%m-%d %H:%M:%S"),
        quoted(&fields.message)
    );
    for (name, value) in &fields.values {
        let written = match value {
            Value::String(text) if is_bare(text) => write!(line, " {name}={text}"),
            Value::String(text) => write!(line, " {name}={}", quoted(text)),
            other => write!(line, " {name}={other}"),
        };
        debug_assert!(written.is_ok(), "writing to a String does not fail");
    }
    line
}

fn json_line(now: Timestamp, level: &str, fields: &Fields) -> String {
    let mut line = Map::new();
    line.insert("level".to_owned(), level.into());
    line.insert("msg".to_owned(), fields.message.clone().into());
    line.insert("time".to_owned(), now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into());
    for (name, value) in &fields.values {
        line.entry(name.clone()).or_insert_with(|| value.clone());
    }
    Value::Object(line).to_string()
}

/// Whether a value needs no quotes to stand apart from its neighbours.
fn is_bare(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '/' | ':' | '@'))
}

/// With escapes, so that a line stays a line whatever a value holds.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The fields of an event or a span, in order.
#[derive(Default)]
struct Fields {
    message: String,
    values: Map<String, Value>,
}

impl Fields {
    fn set(&mut self, field: &Field, value: impl Into<Value>) {
        if field.name() == "message" {
            let value = value.into();
            self.message = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        } else {
            self.values.insert(field.name().to_owned(), value.into());
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::{info, info_span, warn};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = LogLayer::new(format, move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_text_line_has_time_level_message_and_fields() {
        let line = logged(LogFormat::Text, || {
            warn!(
                topic = "in.id.a",
                rows = 5,
                reason = "two words\nand a \"quote\"",
                "batch failed"
            );
        });
        let (time, rest) = line.split_once(" level=").unwrap();
        assert_eq!(time.len(), "time=\"2006-01-02 15:04:05\"".len());
        assert_eq!(
            rest,
            "warning msg=\"batch failed\" topic=in.id.a rows=5 reason=\"two words\\nand a \\\"quote\\\"\"\n"
        );
    }

    #[test]
    fn a_json_line_is_an_object_with_the_fields_of_its_spans() {
        let line = logged(LogFormat::Json, || {
            let _outer = info_span!("run", topic = "outer", destination_id = "pg").entered();
            let _inner = info_span!("load", topic = "inner").entered();
            info!(rows = 5, "batch committed");
        });
        let object: Map<String, Value> = serde_json::from_str(&line).unwrap();
        assert_eq!(object["level"], "info");
        assert_eq!(object["msg"], "batch committed");
        assert_eq!(object["time"].as_str().unwrap().len(), "2006-01-02T15:04:05Z".len());
        assert_eq!(object["rows"], 5);
        assert_eq!(object["topic"], "inner");
        assert_eq!(object["destination_id"], "pg");
    }

    #[test]
    fn a_field_cannot_replace_the_frame_of_a_line() {
        let line = logged(LogFormat::Json, || info!(level = "none", "started"));
        assert!(line.starts_with(r#"{"level":"info","msg":"started","#), "{line}");
    }
}
