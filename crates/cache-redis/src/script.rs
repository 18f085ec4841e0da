//! Server-side scripts: each multi-step change is one atomic step.
//!
//! Called by digest. A server that does not know it (restarted, flushed) gets the text, which makes it known:
//! one more round trip, no `SCRIPT LOAD`.

use std::sync::LazyLock;

use redis::aio::ConnectionLike;
use redis::{Cmd, ErrorKind, FromRedisValue, RedisResult, Script, ServerErrorKind, ToRedisArgs, cmd};

use crate::connection::RedisLink;
use crate::error::CallError;

/// A script with its digest.
pub(crate) struct Prepared {
    operation: &'static str,
    text: &'static str,
    script: LazyLock<Script>,
}

macro_rules! prepared {
    ($($(#[$doc:meta])* $name:ident = $file:literal;)*) => {
        $($(#[$doc])* pub(crate) static $name: Prepared = Prepared {
            operation: $file,
            text: include_str!(concat!("lua/", $file, ".lua")),
            script: LazyLock::new(|| Script::new(include_str!(concat!("lua/", $file, ".lua")))),
        };)*
    };
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
}

impl Prepared {
    /// Runs the script on the shared connection.
    pub(crate) async fn run<T: FromRedisValue>(
        &self,
        link: &RedisLink,
        keys: &[impl ToRedisArgs],
        arguments: &[&[u8]],
    ) -> Result<T, CallError> {
        link.guarded(self.operation, async |mut connection| {
            self.run_on(&mut connection, keys, arguments).await
        })
        .await
    }

    /// Runs the script on a given connection.
    pub(crate) async fn run_on<T: FromRedisValue>(
        &self,
        connection: &mut impl ConnectionLike,
        keys: &[impl ToRedisArgs],
        arguments: &[&[u8]],
    ) -> RedisResult<T> {
        let by_digest = command("EVALSHA", self.script.get_hash(), keys, arguments);
        match by_digest.query_async(connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                command("EVAL", self.text, keys, arguments).query_async(connection).await
            }
            answer => answer,
        }
    }
}

fn command(name: &str, script: &str, keys: &[impl ToRedisArgs], arguments: &[&[u8]]) -> Cmd {
    let mut command = cmd(name);
    command.arg(script).arg(keys.len());
    for key in keys {
        command.arg(key);
    }
    for argument in arguments {
        command.arg(*argument);
    }
    command
}
