//! Errors of Redis, told apart as callers must.

use std::time::Duration;

use cache_core::{BackendError, BackendErrorKind, CacheError};
use redis::{ErrorKind, RedisError, ServerErrorKind};

/// How a call to Redis failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// No answer within the deadline. The command may still take effect.
    #[error("{operation} did not answer within {after:?}")]
    Timeout {
        /// What was being done.
        operation: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// Any other failure.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl CallError {
    /// The error of a call that Redis, or the way to it, answered with `error`.
    pub(crate) fn new(operation: &'static str, error: &RedisError, deadline: Duration) -> Self {
        if error.is_timeout() {
            return Self::Timeout { operation, after: deadline };
        }
        Self::Backend(BackendError::new(classify(error), operation, detail(error)))
    }

    /// Whether the server may be down: what the circuit breaker counts. A refusal of one command is none.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::Backend(error) => {
                matches!(error.kind, BackendErrorKind::Unavailable | BackendErrorKind::NotReady)
            }
        }
    }

    /// The same as a failure of the backend, for contracts that do not tell time-outs apart.
    #[must_use]
    pub fn into_backend(self) -> BackendError {
        match self {
            Self::Timeout { operation, after } => {
                let detail = format!("no answer within {after:?}");
                BackendError::new(BackendErrorKind::Unavailable, operation, detail)
            }
            Self::Backend(error) => error,
        }
    }
}

impl From<CallError> for CacheError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Timeout { operation, after } => Self::Timeout { operation, after },
            CallError::Backend(error) => Self::Backend(error),
        }
    }
}

fn classify(error: &RedisError) -> BackendErrorKind {
    use BackendErrorKind as Kind;
    match error.kind() {
        ErrorKind::Io => return Kind::Unavailable,
        ErrorKind::Parse => return Kind::Protocol,
        ErrorKind::AuthenticationFailed => return Kind::Denied,
        ErrorKind::UnexpectedReturnType => return Kind::Protocol,
        ErrorKind::Server(ServerErrorKind::ReadOnly) => return Kind::ReadOnly,
        ErrorKind::Server(ServerErrorKind::NoPerm) => return Kind::Denied,
        ErrorKind::Server(
            ServerErrorKind::BusyLoading | ServerErrorKind::MasterDown | ServerErrorKind::ClusterDown,
        ) => return Kind::NotReady,
        _ => {}
    }
    match code(error).as_deref() {
        Some("READONLY") => Kind::ReadOnly,
        Some("OOM") => Kind::OutOfMemory,
        Some("NOAUTH" | "NOPERM" | "WRONGPASS") => Kind::Denied,
        Some("WRONGTYPE") => Kind::WrongType,
        Some("LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "NOREPLICAS" | "MISCONF" | "BUSY") => Kind::NotReady,
        _ => Kind::Other,
    }
}

/// The code and nothing else: the rest of the text may repeat arguments, which hold values.
fn detail(error: &RedisError) -> String {
    code(error).unwrap_or_else(|| error.category().to_owned())
}

/// The server's own word for the error; of a pipeline, the first that failed.
fn code(error: &RedisError) -> Option<String> {
    if let Some(code) = error.code() {
        return Some(code.to_owned());
    }
    let failed = error.clone().into_server_errors()?;
    failed.first().map(|(_, error)| error.code().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(line: &str) -> RedisError {
        let parsed = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).expect("a reply");
        parsed.extract_error().expect_err("an error reply")
    }

    /// SC11: replies of a server in trouble are told apart.
    #[test]
    fn replies_are_told_apart() {
        use BackendErrorKind as Kind;
        for (line, kind) in [
            ("READONLY You can't write against a read only replica.", Kind::ReadOnly),
            ("OOM command not allowed when used memory > 'maxmemory'.", Kind::OutOfMemory),
            ("NOAUTH Authentication required.", Kind::Denied),
            ("WRONGPASS invalid username-password pair", Kind::Denied),
            ("NOPERM this user has no permissions", Kind::Denied),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", Kind::WrongType),
            ("LOADING Redis is loading the dataset in memory", Kind::NotReady),
            ("MASTERDOWN Link with MASTER is down", Kind::NotReady),
            ("CLUSTERDOWN The cluster is down", Kind::NotReady),
            ("NOREPLICAS Not enough good replicas to write.", Kind::NotReady),
            ("MISCONF Redis is configured to save RDB snapshots", Kind::NotReady),
            ("ERR something else", Kind::Other),
        ] {
            let CallError::Backend(error) = CallError::new("get", &server(line), Duration::ZERO) else {
                panic!("{line} is no time-out");
            };
            assert_eq!(error.kind, kind, "{line}");
        }
    }

    /// A7: what a server says may repeat a value; the error does not.
    #[test]
    fn no_error_repeats_what_the_server_says() {
        let error = CallError::new("set", &server("ERR bad thing near 'hunter2'"), Duration::ZERO);
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }

    /// SC5: the breaker counts outages, not refusals.
    #[test]
    fn only_outages_count() {
        let outage = |line: &str| CallError::new("get", &server(line), Duration::ZERO).is_outage();
        assert!(outage("LOADING x") && outage("CLUSTERDOWN x"));
        assert!(!outage("WRONGTYPE x") && !outage("OOM x") && !outage("NOPERM x"));
        assert!(CallError::Timeout { operation: "get", after: Duration::ZERO }.is_outage());
    }
}
