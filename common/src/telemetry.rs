//! What Hatchery says about itself, line by line, on stderr.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    str::FromStr,
    sync::Mutex,
};

use serde::{Deserialize, Serialize};
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{self, Writer},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::field::FieldError;

/// The variable that says what is shown, such as `info` or `hatchery_agent=debug,warn`.
pub const FILTER_VARIABLE: &str = "HATCHERY_LOG";
/// What is shown unless it is said otherwise.
const FILTER_DEFAULT: &str = "info";

/// The form of each line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object on each line, for machines.
    Json,
}

impl FromStr for LogFormat {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(FieldError::new("log_format", format!("`{text}` is not one of text, json"))),
        }
    }
}

/// The filter cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid log filter `{filter}` ({FILTER_VARIABLE} or flag): {problem}; examples: `info`, \
     `hatchery_agent=debug,warn`"
)]
pub struct TelemetryError {
    filter: String,
    problem: String,
}

/// What to say, how and where.
pub struct Telemetry {
    role: &'static str,
    format: LogFormat,
    filter: Option<String>,
    also_to: Option<Box<dyn Write + Send>>,
}

impl Telemetry {
    /// Lines of the process's `role`, such as `coordinator`, for people.
    pub fn new(role: &'static str) -> Self {
        Self { role, format: LogFormat::Text, filter: None, also_to: None }
    }

    /// Sets the form of each line.
    #[must_use]
    pub fn format(self, format: LogFormat) -> Self {
        Self { format, ..self }
    }

    /// Sets what is shown; without it `HATCHERY_LOG` says so, and without that it is `info`.
    #[must_use]
    pub fn filter(self, filter: Option<String>) -> Self {
        Self { filter, ..self }
    }

    /// Writes the same lines, without colours, to another place too, a file for instance. The writer is called from any
    /// thread, one line at a time, and should not block for long.
    #[must_use]
    pub fn also_to(self, writer: impl Write + Send + 'static) -> Self {
        Self { also_to: Some(Box::new(writer)), ..self }
    }

    /// Starts. In a process where it has started already this changes nothing, which suits tests.
    pub fn init(self) -> Result<(), TelemetryError> {
        let from_environment = || std::env::var(FILTER_VARIABLE).ok();
        let filter = self.filter.or_else(from_environment).unwrap_or_else(|| FILTER_DEFAULT.to_owned());
        let parsed = EnvFilter::builder().parse(&filter);
        let filter = parsed.map_err(|error| TelemetryError { filter, problem: error.to_string() })?;
        let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let to_stderr = lines(self.role, self.format, colours, io::stderr);
        let also_to = self.also_to.map(|writer| lines(self.role, self.format, false, Mutex::new(writer)));
        let layers = Registry::default().with(to_stderr.and_then(also_to).with_filter(filter));
        // An error says only that something listens already.
        let _ = layers.try_init();
        Ok(())
    }
}

type LineLayer = Box<dyn Layer<Registry> + Send + Sync>;

fn lines<W>(role: &'static str, format: LogFormat, colours: bool, writer: W) -> LineLayer
where
    W: for<'w> tracing_subscriber::fmt::MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colours);
    match format {
        LogFormat::Text => {
            layer.event_format(WithRole { role, format: format::format(), json: false }).boxed()
        }
        LogFormat::Json => {
            let json = format::format().json().flatten_event(true);
            layer.json().event_format(WithRole { role, format: json, json: true }).boxed()
        }
    }
}

/// Another format, with the role before each line.
struct WithRole<F> {
    role: &'static str,
    format: F,
    json: bool,
}

impl<S, N, F> FormatEvent<S, N> for WithRole<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if !self.json {
            write!(writer, "{} ", self.role)?;
            return self.format.format_event(ctx, writer, event);
        }
        let mut line = String::new();
        self.format.format_event(ctx, Writer::new(&mut line), event)?;
        let fields = line.strip_prefix('{').unwrap_or(&line);
        write!(writer, "{{\"role\":\"{}\",{fields}", self.role)
    }
}
