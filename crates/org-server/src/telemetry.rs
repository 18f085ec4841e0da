//! Logs and metrics of the process.

use std::time::{Duration, Instant};

use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;

/// Boundaries of all times, in seconds: from a look into memory to a request that is given up.
const SECONDS: [f64; 13] =
    [0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

static METRICS: Mutex<Option<PrometheusHandle>> = Mutex::new(None);

/// Installs the recorder of this process, or finds the one that is installed. Caches make their metric
/// handles when they are defined, so this comes first.
///
/// # Errors
/// [`BuildError`] when another recorder is installed already.
pub fn metrics() -> Result<PrometheusHandle, BuildError> {
    // Held until it is installed: another thread that starts a server at the same time finds it.
    let mut installed = METRICS.lock();
    if let Some(handle) = &*installed {
        return Ok(handle.clone());
    }
    let recorder = PrometheusBuilder::new().set_buckets(&SECONDS)?.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(BuildError::FailedToSetGlobalRecorder)?;
    Ok(installed.insert(handle).clone())
}

/// Writes logs to the standard error stream, by `RUST_LOG` (default `info`). A second call does nothing.
pub fn logs() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let logs =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal);
    // Refused when a subscriber is there already, as in tests: it then stays.
    let _ = logs.try_init();
}

/// Keeps a log line that anybody can provoke to one in [`EVERY`](Self::EVERY).
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    last: Option<Instant>,
    unsaid: u64,
}

impl Seldom {
    /// Between two lines.
    const EVERY: Duration = Duration::from_secs(10);

    /// The number of lines that were left out since the last one, when it is time for the next.
    pub(crate) fn may_say(&self) -> Option<u64> {
        let mut said = self.0.lock();
        if said.last.is_some_and(|last| last.elapsed() < Self::EVERY) {
            said.unsaid += 1;
            return None;
        }
        said.last = Some(Instant::now());
        Some(std::mem::take(&mut said.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line that is provoked again and again is written once, with the number of the others later.
    #[test]
    fn a_provoked_line_is_seldom() {
        let seldom = Seldom::default();
        assert_eq!((seldom.may_say(), seldom.may_say(), seldom.may_say()), (Some(0), None, None));
        seldom.0.lock().last = None;
        assert_eq!(seldom.may_say(), Some(2));
    }
}
