//! Server-side scripts: each multi-step change is one atomic step.
//!
//! Called by digest. A server that does not know it (restarted, flushed) gets the text, which makes it known:
//! one more round trip, no `SCRIPT LOAD`.

use std::sync::LazyLock;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, ErrorKind, FromRedisValue, RedisResult, Script, ServerErrorKind, ToRedisArgs, cmd};

use crate::connection::RedisLink;
use crate::error::CallError;
use crate::hot::Work;

/// A script with its digest.
pub(crate) struct Prepared {
    operation: &'static str,
    text: &'static str,
    script: LazyLock<Script>,
}

macro_rules! prepared {
    ($($(#[$doc:meta])* $name:ident = $file:literal $(after $before:literal)*;)*) => {
        $($(#[$doc])* pub(crate) static $name: Prepared = Prepared {
            operation: $file,
            text: text!($($before)* $file),
            script: LazyLock::new(|| Script::new(text!($($before)* $file))),
        };)*
    };
}

/// The text of a script: its files, one after the other.
macro_rules! text {
    ($($file:literal)*) => { concat!($(include_str!(concat!("lua/", $file, ".lua"))),*) };
}

prepared! {
    /// `SET NX GET` for servers before 7.0.
    LEASE = "lease";
    /// Takes a dead value over.
    LEASE_OVER = "lease_over";
    /// Stores while the claim stands.
    FILL = "fill";
    /// Prolongs a lease.
    RENEW = "renew";
    /// Ends a lease.
    RELEASE = "release";
    /// Removes keys, and says how many held a value.
    UNLINK_VALUES = "unlink_values";
    /// Removes keys and tells everybody.
    INVALIDATE = "invalidate";
    /// Proves that the server still takes writes, and tells only this instance.
    BEAT = "beat";
    /// Takes units of a token bucket.
    LIMIT_BUCKET = "limit_bucket";
    /// Takes units of a fixed window.
    LIMIT_WINDOW = "limit_window";
    /// Takes a lock, or a place in its queue.
    LOCK_ACQUIRE = "lock_acquire" after "lock_queue";
    /// Ends a holding and wakes who is next.
    LOCK_RELEASE = "lock_release" after "lock_queue";
    /// Settles an id, whatever it has.
    LOCK_GIVE_UP = "lock_give_up" after "lock_queue";
    /// Prolongs a holding.
    LOCK_RENEW = "lock_renew";
    /// Adds a connection to a tenant, or replaces what is known of it.
    PRESENCE_JOIN = "presence_join" after "presence_begin" after "presence_sweep";
    /// Prolongs the lives of connections.
    PRESENCE_HEARTBEAT = "presence_heartbeat" after "presence_begin" after "presence_sweep";
    /// Removes a connection.
    PRESENCE_LEAVE = "presence_leave" after "presence_begin";
    /// A page of the living connections.
    PRESENCE_LIST = "presence_list" after "presence_begin";
    /// How many connections live.
    PRESENCE_COUNT = "presence_count" after "presence_begin";
}

/// A script with what it is called with.
pub(crate) struct Invocation<'a, K> {
    script: &'static Prepared,
    keys: &'a [K],
    arguments: &'a [&'a [u8]],
}

impl Prepared {
    /// The script with its keys and arguments.
    pub(crate) fn with<'a, K>(&'static self, keys: &'a [K], arguments: &'a [&'a [u8]]) -> Invocation<'a, K> {
        Invocation { script: self, keys, arguments }
    }
}

impl<K: ToRedisArgs + Sync> Invocation<'_, K> {
    /// Runs it on the shared connection; twice when that broke meanwhile, so a script must be such that twice
    /// does no harm.
    pub(crate) async fn run<T: FromRedisValue + Send>(&self, link: &RedisLink) -> Result<T, CallError> {
        link.call(self.script.operation, self).await
    }

    /// As [`run`](Self::run), but never twice.
    pub(crate) async fn run_once<T: FromRedisValue + Send>(&self, link: &RedisLink) -> Result<T, CallError> {
        link.call_once(self.script.operation, self).await
    }

    /// As [`run`](Self::run), as a sign of life: also while the circuit breaker is open.
    pub(crate) async fn run_as_sign_of_life<T: FromRedisValue + Send>(
        &self,
        link: &RedisLink,
    ) -> Result<T, CallError> {
        link.sign_of_life(self.script.operation, self).await
    }

    /// Runs it on a given connection.
    pub(crate) async fn run_on<T: FromRedisValue>(
        &self,
        connection: &mut impl ConnectionLike,
    ) -> RedisResult<T> {
        let by_digest = self.command("EVALSHA", self.script.script.get_hash());
        match by_digest.query_async(connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.command("EVAL", self.script.text).query_async(connection).await
            }
            answer => answer,
        }
    }

    fn command(&self, name: &str, script: &str) -> Cmd {
        let mut command = cmd(name);
        command.arg(script).arg(self.keys.len());
        for key in self.keys {
            command.arg(key);
        }
        for argument in self.arguments {
            command.arg(*argument);
        }
        command
    }
}

impl<K: ToRedisArgs + Sync> Work for Invocation<'_, K> {
    async fn perform<T: FromRedisValue + Send>(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> RedisResult<T> {
        self.run_on(connection).await
    }
}
